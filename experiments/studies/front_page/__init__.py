"""The photograph on the front page."""
