"""True error of hypergradients beside their worst-case bound, local bound and
estimate."""
