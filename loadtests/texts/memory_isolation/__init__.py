"""Two tenants with the same ids call everything at once, and each must get what it would get alone."""
