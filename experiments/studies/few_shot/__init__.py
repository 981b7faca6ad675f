"""Adapt a trained regularizer to a new noise level and to a new blur from a few
patches: meta-learned rules against plain ones."""
