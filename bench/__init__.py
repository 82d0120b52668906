"""What the benchmark commands of `tools/bench/` are made of."""
