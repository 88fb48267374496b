"""Memories distilled into a LoRA: what it knows, what it forgets, what it leaks, and what it costs."""
