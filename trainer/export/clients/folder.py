"""An exported folder as its small files tell it, and what was trained; it judges nothing."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from trainer.checkpoint.dense_files import dense_config
from trainer.checkpoint.json_files import read_modules, read_object
from trainer.errors import CheckpointError
from trainer.export.parity_file import ANEW, PARITY, Parity, find_parity

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
MODULES = "modules.json"
POOLING = "1_Pooling/config.json"
SENTENCE = "sentence_bert_config.json"
PROMPTS = "config_sentence_transformers.json"
ADAPTER = "adapter_config.json"

POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
}
"""Keys of the pooling file and the recipe's words; the last two are not trained here."""
NEW_POOLINGS = {
    "cls": "cls",
    "mean": "mean",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
"""Words of the one key that sentence-transformers 6 writes."""
ENCODERS = frozenset(
    [
        "albert",
        "bert",
        "big_bird",
        "camembert",
        "deberta",
        "deberta-v2",
        "distilbert",
        "electra",
        "ernie",
        "esm",
        "eurobert",
        "ibert",
        "jina_embeddings_v3",
        "megatron-bert",
        "mobilebert",
        "modernbert",
        "mpnet",
        "mra",
        "neobert",
        "new",
        "nomic_bert",
        "nystromformer",
        "rembert",
        "roberta",
        "roberta-prelayernorm",
        "roformer",
        "squeezebert",
        "xlm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xlnet",
        "xmod",
        "yoso",
    ]
)
"""Model types whose attention is open by their code; no key says so."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What clients must give: from `parity.json`, or from the folder where there is none."""

    pooling: str
    """`last`, `mean`, `weighted_mean` or `cls`."""
    include_prompt: bool
    """Whether a mean includes the prompt."""
    opened: bool
    """Whether a decoder was trained with bidirectional attention."""
    max_tokens: int | None
    """Texts are cut here."""
    end_token: int | None
    """Ends every text."""
    prompts: Mapping[str, str]
    """By name."""


@dataclass(frozen=True, kw_only=True)
class ExportFolder:
    """The small files of a folder; empty where one is missing."""

    path: Path
    """The folder."""
    config: Mapping[str, Any]
    """config.json; of the base, where an adapter's folder names one on this disk."""
    tokenizer_config: Mapping[str, Any]
    """tokenizer_config.json."""
    tokenizer: Mapping[str, Any]
    """tokenizer.json."""
    modules: tuple[Mapping[str, Any], ...]
    """modules.json."""
    pooling: Mapping[str, Any]
    """1_Pooling/config.json."""
    sentence: Mapping[str, Any]
    """sentence_bert_config.json."""
    sentence_config: Mapping[str, Any]
    """config_sentence_transformers.json."""
    adapter: Mapping[str, Any] | None
    """adapter_config.json; None for whole weights."""
    dense: Mapping[str, Any] | None
    """config.json of the one dense layer behind the pooling; None where there is none."""
    parity: Parity | None
    """parity.json."""

    @property
    def model_type(self) -> str:
        """Of the config."""
        return str(self.config.get("model_type", ""))

    @property
    def is_decoder(self) -> bool:
        """Whether a key of the config decides what tokens see."""
        return bool(self.config) and self.model_type not in ENCODERS

    @property
    def prompts(self) -> dict[str, str]:
        """Prompts by name, as sentence-transformers has them."""
        prompts = self.sentence_config.get("prompts")
        return dict(prompts) if isinstance(prompts, dict) else {}

    @property
    def poolings(self) -> list[str]:
        """The recipe's words for the poolings that the file turns on."""
        found = [word for key, word in POOLINGS.items() if self.pooling.get(key) is True]
        mode = self.pooling.get("pooling_mode")
        modes = mode if isinstance(mode, list) else [mode] if mode else []
        return found or [NEW_POOLINGS.get(str(name), str(name)) for name in modes]

    @cached_property
    def trained(self) -> Trained:
        """What was trained, as far as this folder tells."""
        parity = self.parity
        if parity is not None:
            settings = parity.settings
            return Trained(
                pooling=settings.pooling,
                include_prompt=settings.include_prompt,
                opened=settings.attention == "bidirectional" and self.is_decoder,
                max_tokens=settings.max_tokens,
                end_token=settings.end_token,
                prompts=parity.prompts,
            )
        declared = self.config.get("is_causal") is False
        return Trained(
            pooling=next(iter(self.poolings), "mean"),
            include_prompt=self.pooling.get("include_prompt") is not False,
            opened=(declared or self.config.get("use_bidirectional_attention") is True)
            and self.is_decoder,
            max_tokens=self.sentence.get("max_seq_length"),
            end_token=None,
            prompts=self.prompts,
        )

    @cached_property
    def weight_headers(self) -> dict[str, Mapping[str, Any]]:
        """Headers of the weight files by file name.

        Raises:
            CheckpointError: if a file is cut or no safetensors file.
        """
        headers = {}
        for file in sorted(self.path.glob("*.safetensors")):
            with file.open("rb") as stream:
                try:
                    (size,) = struct.unpack("<Q", stream.read(8))
                    headers[file.name] = json.loads(stream.read(min(size, file.stat().st_size)))
                except (struct.error, ValueError) as error:
                    raise CheckpointError(
                        f"{file}: header = not readable ({error}); expected a safetensors file. "
                        "Copy the file again."
                    ) from error
        return headers

    @property
    def tensor_names(self) -> frozenset[str]:
        """Names in the weight files."""
        names = {name for header in self.weight_headers.values() for name in header}
        return frozenset(names - {"__metadata__"})


def read_export(path: Path) -> ExportFolder:
    """Read the small files of an exported folder, `parity.json` among them.

    Raises:
        CheckpointError: as `read_files`, or if `parity.json` is damaged or of another model.
    """
    folder = replace(read_files(path), parity=find_parity(path))
    _check_size(folder)
    return folder


def read_files(path: Path) -> ExportFolder:
    """Read the small files that clients read.

    Args:
        path: the folder.

    Raises:
        CheckpointError: if it is no exported folder, or a file is not what its readers count on.
    """
    if not (path / MODULES).is_file():
        raise CheckpointError(
            f"{path}: {MODULES} = missing; expected an exported model. "
            "Give the model/ folder of a finished run."
        )
    adapter = read_object(path / ADAPTER) if (path / ADAPTER).is_file() else None
    if adapter is None and not (path / CONFIG).is_file():
        raise CheckpointError(
            f"{path}: {CONFIG} = missing; expected the config of a model, or {ADAPTER} of an "
            "adapter. Give the model/ folder of a finished run."
        )
    return ExportFolder(
        path=path,
        config=_config(path, adapter),
        tokenizer_config=_optional(path / TOKENIZER_CONFIG),
        tokenizer=_optional(path / TOKENIZER),
        modules=tuple(read_modules(path / MODULES)),
        pooling=_optional(path / POOLING),
        sentence=_optional(path / SENTENCE),
        sentence_config=_optional(path / PROMPTS),
        adapter=adapter,
        dense=dense_config(path),
        parity=None,
    )


def _config(path: Path, adapter: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The text part of the folder's config, or of the base that an adapter names."""
    place = path
    if adapter is not None and not (path / CONFIG).is_file():
        place = Path(str(adapter.get("base_model_name_or_path")))
    config = _optional(place / CONFIG)
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) and "hidden_size" not in config else config


def _optional(path: Path) -> Mapping[str, Any]:
    """Content of an object's file, or nothing where there is no file."""
    return read_object(path) if path.is_file() else {}


def _check_size(folder: ExportFolder) -> None:
    """Refuse vectors of another model."""
    size, place = folder.config.get("hidden_size"), f"hidden_size of {CONFIG}"
    if folder.dense is not None:
        size, place = folder.dense.get("out_features"), "out_features of the dense layer"
    if folder.parity is None or not isinstance(size, int):
        return
    if folder.parity.settings.dimensions != size:
        raise CheckpointError(
            f"{folder.path / PARITY}: settings.dimensions = {folder.parity.settings.dimensions}; "
            f"expected {size}, the {place}. {ANEW}"
        )
