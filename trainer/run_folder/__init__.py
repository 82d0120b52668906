"""The paths and small files of an output folder."""
