"""Side-by-side measurements of one run: convolution kernels, lower-level
solvers, hypergradients of all kinds, growth."""
