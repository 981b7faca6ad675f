"""Metrics, baselines, tables and pictures of a finished run."""
