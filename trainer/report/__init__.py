"""The page on a run, made from the files of its output folder."""
