"""`loadtests.consolidation`: a namespace with duplicates and near misses becomes fewer memories."""
