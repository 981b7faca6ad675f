"""Hypergradient methods: each turns (problem, loss, start) into a
``Sensitivity``, from which the gradient is read."""
