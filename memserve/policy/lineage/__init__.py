"""What was made of what, as the records say; and what is retired with a memory that is erased."""
