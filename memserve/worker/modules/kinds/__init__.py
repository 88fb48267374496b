"""How each kind of module is loaded and applied in an engine."""
