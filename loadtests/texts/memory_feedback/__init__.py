"""Learning from outcomes: cases whose order changes, and reflections on failures."""
