"""The parts of ``python -m experiments.studies.gpu_check``; torch,
``piggyback``, ``regularizers`` and the standard library only."""
