"""The error rates of the rules for duplicates and contradictions, on sentences with known answers."""
