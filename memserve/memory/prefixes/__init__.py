"""KV prefixes as a tenant sees them: looked up, pinned, evicted, counted."""
