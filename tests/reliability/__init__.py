"""What the toolkit survives and what it refuses: the tables behind
docs/reliability.md."""
