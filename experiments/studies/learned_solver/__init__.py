"""A lower-level solver that learns: start, steps and metric from solved images;
same minimiser and certificate, less work."""
