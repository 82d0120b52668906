"""Imported last by what is forked: the garbage collector passes over all that was imported before.

DeepSpeed collects garbage when it makes an engine. With the compiler imported, that is half a
second of a core for each engine.
"""

import gc

gc.collect()
gc.freeze()
