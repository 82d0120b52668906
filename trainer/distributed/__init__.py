"""The ranks of a run: their group, who is alive, what they agree on, rows they exchange."""
