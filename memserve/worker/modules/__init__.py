"""The modules that an engine holds: copied, loaded, kept, evicted."""
