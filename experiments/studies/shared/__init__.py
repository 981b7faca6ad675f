"""What studies share: instances, reference solutions, figures."""
