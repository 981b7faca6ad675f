"""Algorithms for the lower level and its adjoint: each file an ``Iteration``
for the loop in ``piggyback.solvers.loop``."""
