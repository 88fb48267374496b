"""Modules of knowledge in weights: published, versioned, resolved."""
