"""``Reconstruction``: the lower level as a torch function."""
