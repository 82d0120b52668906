"""What `tools/demo.py` is made of: its data, its small model."""
