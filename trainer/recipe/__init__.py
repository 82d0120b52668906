"""Recipe files: read, checked and resolved into plain numbers. Imports no torch."""
