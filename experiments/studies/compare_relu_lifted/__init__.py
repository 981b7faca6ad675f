"""The ReLU-lifted form of a ReLU network against the nested one: time and steps to
the same energy, and conditioning."""
