"""The modules that an engine holds: how they are fetched, loaded, kept and evicted."""
