"""Learned linear operators ``K`` of ``R(x) = f(K x)``, with the norms and gains
that the certificates need."""
