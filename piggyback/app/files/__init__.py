"""Files that are never half written, and never lost."""
