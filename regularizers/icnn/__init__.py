"""Input-convex networks as regularizers: energy, derivatives, bounds of
curvature."""
