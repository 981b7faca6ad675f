"""ReLU networks, their layers lifted to variables of one convex problem
(docs/theory.md)."""
