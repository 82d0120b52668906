"""Everything that is written to or read from disk as weights."""
