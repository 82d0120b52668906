"""Modules of a backbone that no setting reaches; it must not import a model."""

UNUSED = ("pooler.",)
"""Beginnings of names of modules that no embedding passes through; they are frozen."""
