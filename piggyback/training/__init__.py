"""The upper level: oracles with error bounds, certified and stochastic descent,
tolerances and rates that set themselves."""
