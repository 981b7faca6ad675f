"""Convolution banks: boundaries, kernels that compute them, bounds of their
norms."""
