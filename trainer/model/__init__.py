"""A transformers backbone as an embedder: loading, pooling, dropout."""
