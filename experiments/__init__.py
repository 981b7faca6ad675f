"""The command line: training, evaluation, and the figures and tables of docs/results.md."""
