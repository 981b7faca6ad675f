from experiments.studies.benchmark.run import main

main()
