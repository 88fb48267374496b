"""The ladder's policy over weeks of simulated traffic."""
