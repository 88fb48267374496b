"""The edges: everything that a client's bytes meet before the gateway's own code."""
