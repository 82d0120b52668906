"""Hard negatives of a source by an embedder: filtered candidates of an exact, sharded search."""
