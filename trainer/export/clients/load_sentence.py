"""sentence-transformers run on an exported folder; releases 3, 5 and 6 take the same calls."""

from typing import Any

import numpy as np

from trainer.export.clients.compare import Embedded
from trainer.export.clients.folder import ExportFolder
from trainer.export.parity_file import Parity

BATCH = 4
"""Texts of one forward, so that some are padded."""


def run_sentence_transformers(folder: ExportFolder, parity: Parity) -> Embedded:
    """Embed the texts by `encode`, each with the name of its prompt."""
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    dtype = {"torch_dtype": getattr(torch, parity.settings.dtype)}
    model: Any = SentenceTransformer(str(folder.path), device="cpu", model_kwargs=dtype)
    model.max_seq_length = min(int(model.max_seq_length), parity.settings.max_tokens)
    vectors = np.zeros((len(parity.texts), parity.settings.dimensions), np.float32)
    names = dict.fromkeys(text.prompt_name for text in parity.texts)
    for name in names:
        numbers = [n for n, text in enumerate(parity.texts) if text.prompt_name == name]
        vectors[numbers] = model.encode(
            [parity.texts[number].text for number in numbers],
            prompt_name=name,
            batch_size=BATCH,
            show_progress_bar=False,
            convert_to_tensor=True,
        ).float().cpu()  # fmt: skip
    return Embedded(
        numbers=range(len(parity.texts)),
        vectors=vectors,
        token_ids=[
            _ids(model, model.prompts.get(t.prompt_name, "") + t.text) for t in parity.texts
        ],
    )


def _ids(model: Any, text: str) -> list[int]:
    """Ids of one text as `encode` has them."""
    tokenise = model.preprocess if hasattr(model, "preprocess") else model.tokenize
    ids: list[int] = tokenise([text])["input_ids"][0].tolist()
    return ids
