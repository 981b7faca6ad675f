"""Convex terms of the lower-level problem: quadratic data terms and separable
potentials."""
