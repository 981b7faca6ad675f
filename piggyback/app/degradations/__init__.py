"""From clean images to observations, and from observations to data terms."""
