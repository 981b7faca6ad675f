"""Photographs as they are to restored ones: nothing is degraded here."""
