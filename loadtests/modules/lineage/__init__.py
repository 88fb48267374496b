"""One fact of a module is erased: no rung answers it, its neighbours are answered, and nothing is left."""
