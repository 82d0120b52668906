"""Train decoder LLMs into text embedders for retrieval and semantic similarity on DeepSpeed ZeRO.

The rooms and the direction of their imports: errors, recipe, cli, data, run_folder, distributed,
model, objectives, memory, engine, checkpoint, unpack, export, evaluation, merge, mining, report,
preflight, session, run. A room imports only itself and rooms to its left.
"""

__version__ = "0.1.0"
