"""The cache's books in Redis: who holds what, what it is worth, what has to go."""
