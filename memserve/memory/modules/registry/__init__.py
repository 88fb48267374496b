"""What is known of modules, in the registry Redis: versions, aliases, preloads, claims, audit."""
