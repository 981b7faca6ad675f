"""Does it pay to let certificates choose the tolerances? Operator applications
to the same training loss, method by method."""
