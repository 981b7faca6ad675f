"""The parts of ``python -m experiments.gpu_check``; torch, ``piggyback``, ``regularizers`` and the standard library only."""
