"""Lower-level problems written out once more, without the package: what
references are computed from."""
