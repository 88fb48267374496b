"""Modules: references, traffic, the gate, residency."""
