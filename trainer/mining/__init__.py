"""Hard negatives of a source by an embedder: filtered candidates of a sharded search, scored."""
