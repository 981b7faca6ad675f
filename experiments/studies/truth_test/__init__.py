"""A hypergradient that is wanted to 1 %: what one gets, from this package, from
residual tolerances, from cvxpylayers."""
