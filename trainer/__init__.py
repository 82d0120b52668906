"""Train decoder LLMs into text embedders for retrieval and semantic similarity on DeepSpeed ZeRO.

The rooms and the direction of their imports: errors, recipe, data, model, objectives, engine,
checkpoint, evaluation, merge. A room imports only itself and rooms to its left. The modules beside
the rooms put a run together and may import any of them: `run.py` starts one, `session.py` holds it.
"""

__version__ = "0.1.0"
