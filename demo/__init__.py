"""What `tools/demo.py` and `tools/llm.py` are made of: data, a small model, a driver of runs."""
