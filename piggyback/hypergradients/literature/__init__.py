"""Hypergradient methods of the literature, for comparison: none of them returns
a pair that could be certified."""
