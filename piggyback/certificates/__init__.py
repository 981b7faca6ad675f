"""Certificates: from a computed pair ``(x, P)`` to numbers that hold. Nothing
here needs the exact solution."""
