"""`loadtests.continual`: documents that are distilled one after the other, and what is left of them."""
