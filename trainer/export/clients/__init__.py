"""What clients make of an exported folder: rules that read its files, and loaders that run them.

Imports are light: heavy libraries are imported where a client is run.
"""
