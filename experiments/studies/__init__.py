"""Figures and tables of docs/results.md: ``python -m
experiments.studies.<name>``."""
