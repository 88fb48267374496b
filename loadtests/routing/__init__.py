"""Routing: goodput in simulation, and against real workers."""
