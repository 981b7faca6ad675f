"""Data terms, one file each: quadratics with a constant Hessian ``H``."""
