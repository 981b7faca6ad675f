"""The lower level: what is minimised, its residuals, and the surrogate that
gradients are read off."""
