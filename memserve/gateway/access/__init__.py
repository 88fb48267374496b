"""Who calls, in which role, and how many calls and answers are under way at the same time."""
