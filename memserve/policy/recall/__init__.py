"""What is recalled: words, ranks, and the prompt that passages go into."""
