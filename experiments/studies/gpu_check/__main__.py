import os
import sys

from experiments.studies.gpu_check.run import main

code = main()
sys.stdout.flush()
os._exit(
    code
    # a compiler that still runs, or a context that cannot be torn down, would
    # hold the card
)
