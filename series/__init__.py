"""What `tools/bag.py` and `tools/update.py` are made of: runs after each other, and their merge."""
