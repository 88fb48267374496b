"""Who calls, in which role, and how much at once."""
