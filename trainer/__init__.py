"""Train decoder LLMs into text embedders for retrieval and semantic similarity on DeepSpeed ZeRO.

The rooms and the direction of their imports: errors, recipe, data, model, objectives, engine,
checkpoint, evaluation. A room imports only rooms to its left; only `run.py` sees all.
"""

__version__ = "0.1.0"
