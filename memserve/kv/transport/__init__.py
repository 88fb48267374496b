"""The Redis servers of the cache: their URL, their topology, what they must be, and the wire."""
