"""The run of ``train``: checks, start, both phases."""
