"""The same facts by every memory that can hold them: the project's table."""
