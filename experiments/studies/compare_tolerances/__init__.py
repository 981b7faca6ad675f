"""Six training tasks without tuning: tolerances by certificate and a raced step
size, beside five fixed pairs of tolerances."""
