"""Quality of a search of text memories: generated questions with known answers, and the fit of relevance."""
