"""Metrics of embeddings on STS and IR sets."""
