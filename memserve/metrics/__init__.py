"""Prometheus: the instruments of gateway and worker, and the HTTP port that is scraped."""
