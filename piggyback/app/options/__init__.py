"""Command lines: their parsers, and what a run keeps of them."""
