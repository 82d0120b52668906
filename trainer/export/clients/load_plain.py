"""transformers run on an exported folder, and the model it gives run by ONNX Runtime.

Heavy libraries are imported in functions. Releases 4 and 5 of transformers take the same calls.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.checkpoint.dense_files import dense_weights
from trainer.export.clients.compare import Embedded
from trainer.export.clients.folder import ExportFolder
from trainer.export.parity_file import Parity

if TYPE_CHECKING:
    import torch

BATCH = 4
"""Texts of one forward, so that some are padded."""


@dataclass(frozen=True)
class Tokenised:
    """All texts of `parity.json` by the folder's own tokenizer and prompts."""

    batches: list[dict[str, Any]]
    """Arguments of the model, tensors [BATCH, L] or fewer rows."""
    prompt_lengths: list[list[int]]
    """Tokens of each prompt and of what stands before it, by batch."""

    @property
    def token_ids(self) -> list[list[int]]:
        """Ids of each text, without padding."""
        return [
            row[mask.bool()].tolist()
            for batch in self.batches
            for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]


def run_transformers(folder: ExportFolder, parity: Parity) -> Embedded:
    """Embed the texts by `AutoTokenizer` and `AutoModel`, pooled as the folder says."""
    import torch

    model, tokenised = load_model(folder, parity), tokenise(folder, parity)
    with torch.no_grad():
        states = [model(**batch).last_hidden_state for batch in tokenised.batches]
    return _embedded(folder, parity, tokenised, states)


def run_onnx(folder: ExportFolder, parity: Parity) -> Embedded:
    """Export the model that transformers loads, and run it by ONNX Runtime at a fixed shape."""
    import onnxruntime

    model = load_model(folder, parity)
    tokenised = tokenise(folder, parity, width=max(len(t.token_ids) for t in parity.texts))
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "model.onnx"
        _export_onnx(model, tokenised.batches[0], file)
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        states = [_run_onnx(session, batch) for batch in tokenised.batches]
    return _embedded(folder, parity, tokenised, states)


def load_model(folder: ExportFolder, parity: Parity) -> Any:
    """The backbone of a folder, an adapter on its base."""
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    dtype = getattr(torch, parity.settings.dtype)
    return AutoModel.from_pretrained(str(folder.path), dtype=dtype).eval()


def tokenise(folder: ExportFolder, parity: Parity, *, width: int | None = None) -> Tokenised:
    """All texts, in order.

    Args:
        folder: its tokenizer, its prompts and its limit.
        parity: the texts, and the limit under which they were made.
        width: pad to so many tokens; None: to the longest of each batch.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder.path))
    limit = min(int(tokenizer.model_max_length), parity.settings.max_tokens)
    batches, lengths = [], []
    for start in range(0, len(parity.texts), BATCH):
        texts = parity.texts[start : start + BATCH]
        prompts = [folder.prompts.get(str(text.prompt_name), "") for text in texts]
        encoded = tokenizer(
            [prompt + text.text for prompt, text in zip(prompts, texts, strict=True)],
            padding="max_length" if width else True,
            truncation=True,
            max_length=max(limit, width or 0),
            return_tensors="pt",
        )
        batches.append({key: encoded[key] for key in ("input_ids", "attention_mask")})
        lengths.append([_prompt_length(tokenizer, prompt) for prompt in prompts])
    return Tokenised(batches, lengths)


def _prompt_length(tokenizer: Any, prompt: str) -> int:
    """Tokens of a prompt and of what stands before it, without an end token."""
    ids = tokenizer(prompt)["input_ids"] if prompt else []
    return len(ids) - (bool(ids) and ids[-1] in tokenizer.all_special_ids)


def _embedded(
    folder: ExportFolder, parity: Parity, tokenised: Tokenised, states: "list[torch.Tensor]"
) -> Embedded:
    """Vectors of all texts from the token states of each batch [B, L, D]."""
    rows = [
        _pooled(folder, batch["attention_mask"], lengths, state)
        for batch, lengths, state in zip(
            tokenised.batches, tokenised.prompt_lengths, states, strict=True
        )
    ]
    return Embedded(
        numbers=range(len(parity.texts)),
        vectors=np.concatenate(rows),
        token_ids=tokenised.token_ids,
    )


def _pooled(
    folder: ExportFolder, mask: "torch.Tensor", prompts: list[int], states: "torch.Tensor"
) -> np.ndarray:
    """Unit vectors [B, D], float32, from states [B, L, D], by the folder's pooling file."""
    rows = list(_pooled_rows(folder, mask, prompts, states))
    vectors = _projected(folder, np.stack(rows))
    unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _projected(folder: ExportFolder, pooled: np.ndarray) -> np.ndarray:
    """What the dense layer makes of pooled states [B, H]: [B, D], float32."""
    if folder.dense is None:
        return pooled
    from safetensors.torch import load_file

    (file,) = dense_weights(folder.path)
    tensors = {name: tensor.float().numpy() for name, tensor in load_file(file).items()}
    vectors = pooled @ tensors["linear.weight"].T + tensors.get("linear.bias", np.float32(0))
    is_tanh = str(folder.dense.get("activation_function")).endswith("Tanh")
    return np.tanh(vectors) if is_tanh else vectors


def _pooled_rows(
    folder: ExportFolder, mask: "torch.Tensor", prompts: list[int], states: "torch.Tensor"
) -> Iterator[np.ndarray]:
    """The pooled state of each text [D]."""
    how = folder.poolings[0] if len(folder.poolings) == 1 else "unknown"
    skip = folder.pooling.get("include_prompt") is False
    for row, real, prompt in zip(states, mask.bool(), prompts, strict=True):
        kept = row[real].float().numpy()
        if how == "last":
            yield kept[-1]
        elif how == "cls":
            yield kept[0]
        elif how == "mean":
            yield kept[prompt if skip else 0 :].mean(axis=0)
        elif how == "weighted_mean":
            first = prompt if skip else 0
            yield np.average(kept[first:], axis=0, weights=np.arange(first, len(kept)) + 1.0)
        else:
            raise ValueError(f"1_Pooling/config.json: {folder.poolings}; expected one pooling")


def _export_onnx(model: Any, batch: dict[str, Any], file: Path) -> None:
    """Trace the model at the shape of a batch."""
    import torch

    class States(torch.nn.Module):
        """Token states alone."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            """States [B, L, D]."""
            output = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
            return output.last_hidden_state

    # the older exporter cannot trace how masks are made
    torch.onnx.export(
        States().eval(),
        (batch["input_ids"], batch["attention_mask"]),
        str(file),
        input_names=["input_ids", "attention_mask"],
        output_names=["states"],
        dynamo=True,
        verbose=False,
    )


def _run_onnx(session: Any, batch: dict[str, Any]) -> Any:
    """States of a batch [B, L, D], which is filled to the shape that was traced."""
    import torch

    num_texts = len(batch["input_ids"])
    filled = {
        key: np.concatenate([tensor.numpy()] * BATCH)[:BATCH] for key, tensor in batch.items()
    }
    wanted = {entry.name for entry in session.get_inputs()}
    (states,) = session.run(["states"], {key: filled[key] for key in filled if key in wanted})
    return torch.from_numpy(states)[:num_texts]
