"""The files of modules under their content digest, and the places they are kept in."""
