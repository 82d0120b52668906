"""The files of a tokenizer, so that transformers 4, transformers 5 and converters make equal ids.

It must not change what a text is cut into: `tokenizer.json` says that, and all else follows it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from trainer.checkpoint.json_files import read_object, write_json
from trainer.export.changes import differences

CONFIG, TOKENIZER, SPECIAL = "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"
GENERIC = "PreTrainedTokenizerFast"
"""The class that takes `tokenizer.json` as it is, in every release."""
NEW_NAMES = ("TokenizersBackend", "PythonBackend", "SentencePieceBackend")
"""Classes that only transformers 5 knows."""
PRIVATE = ("backend", "is_local", "local_files_only", "name_or_path", "special_tokens_map_file",
           "tokenizer_file")  # fmt: skip
"""Keys that say where and how a tokenizer was loaded once."""
ONLY_5 = NEW_NAMES[0]
"""Takes `tokenizer.json` as it is, and ends an older release with an error."""
MADE_UP = {"gemma3_text": "Gemma3TextModel"}
"""Bases whose weights releases before 5 make up where they are published with a head: they look for
them under the names of this class. An adapter on such a base must not load there."""
ADAPTER = "adapter_config.json"
REBUILT = ("CodeLlamaTokenizer", "CohereTokenizer", "GPTNeoXTokenizer", "GemmaTokenizer",
           "LlamaTokenizer")  # fmt: skip
"""Classes whose releases before 5 make the template anew from `add_bos_token`, `add_eos_token`."""
FROM_SLOW = ("CodeLlamaTokenizer", "LlamaTokenizer")
"""Classes that look for a sentencepiece file before release 5 where `add_prefix_space` is given."""
NORMALIZER_KEYS = {"do_lower_case": "lowercase", "strip_accents": "strip_accents",
                   "tokenize_chinese_chars": "handle_chinese_chars"}  # fmt: skip
"""Arguments of BERT's classes, which go before the normalizer of `tokenizer.json`."""
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
                 "mask_token")  # fmt: skip


@dataclass(frozen=True)
class Template:
    """Special tokens that are put around each text."""

    before: tuple[str, ...]
    after: tuple[str, ...]
    end_id: int | None
    """Id of the last one after it."""


def read_template(backend: Tokenizer) -> Template:
    """What a tokenizer puts around a text.

    Args:
        backend: its padding and truncation are switched off.
    """
    backend.no_padding()
    backend.no_truncation()
    encoding = backend.encode("a")
    marks = [*encoding.special_tokens_mask]
    inner = [place for place, mark in enumerate(marks) if not mark]
    start, stop = (inner[0], inner[-1] + 1) if inner else (len(marks), len(marks))
    after = tuple(encoding.tokens[stop:])
    return Template(tuple(encoding.tokens[:start]), after, encoding.ids[-1] if after else None)


def complete_tokenizer(folder: Path, base: Path | None) -> tuple[list[str], Template | None]:
    """Complete the tokenizer's files.

    Args:
        folder: may have none.
        base: folder of the model that was trained, for the class of its tokenizer.

    Returns:
        What was changed, and what is put around a text; None where there is no `tokenizer.json`.
    """
    if not (folder / TOKENIZER).is_file() or not (folder / CONFIG).is_file():
        return [], None
    content = read_object(folder / TOKENIZER)
    template = read_template(Tokenizer.from_file(str(folder / TOKENIZER)))
    old = read_object(folder / CONFIG)
    new = _older_names({key: value for key, value in old.items() if key not in PRIVATE})
    new |= _class_of(new, base) | _sides(new, folder)
    new |= _legacy_of(new, base) | _blanks(content)
    if _is_made_up(folder, base):
        new["tokenizer_class"] = ONLY_5
    new = _for_class(new, content, template)
    changes = _limit(folder, content, new)
    changes += _write(folder / CONFIG, old, new)
    if new["tokenizer_class"] != GENERIC and not _reloads(folder, content):
        generic = _for_class(new | {"tokenizer_class": GENERIC}, content, template)
        changes += _write(folder / CONFIG, new, generic)
        new = generic
    return changes + _special_tokens(folder, new), template


def _write(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Write what differs; says what does."""
    changes = differences(path.name, old, new)
    if changes:
        write_json(path, dict(sorted(new.items())))
    return changes


def _blanks(content: Mapping[str, Any]) -> dict[str, bool]:
    """What llama.cpp's converter takes for the rule that blanks in a row are one.

    transformers reads the key when it decodes, and never when it encodes.
    """
    pieces = content.get("pre_tokenizer") or {}
    kinds = [part.get("type") for part in pieces.get("pretokenizers", [pieces])]
    is_unigram = (content.get("model") or {}).get("type") == "Unigram"
    split = is_unigram and "WhitespaceSplit" in kinds
    return {"clean_up_tokenization_spaces": True} if split else {}


def _is_made_up(folder: Path, base: Path | None) -> bool:
    """Whether a folder is of an adapter whose base releases before 5 load as random numbers."""
    if not (folder / ADAPTER).is_file():
        return False
    place = base or Path(str(read_object(folder / ADAPTER).get("base_model_name_or_path")))
    config = read_object(place / "config.json") if (place / "config.json").is_file() else {}
    bare = MADE_UP.get(str(config.get("model_type")))
    return bare is not None and config.get("architectures") != [bare]


def _class_of(config: Mapping[str, Any], base: Path | None) -> dict[str, str]:
    """The class that the base names, or else one that every release knows."""
    named = [str(config.get("tokenizer_class") or "")]
    if base is not None:
        for name in (CONFIG, "config.json"):
            if (base / name).is_file():
                named.insert(-1, str(read_object(base / name).get("tokenizer_class") or ""))
    known = (name for name in named if name and name not in NEW_NAMES)
    return {"tokenizer_class": next(known, GENERIC)}


def _older_names(config: dict[str, Any]) -> dict[str, Any]:
    """`additional_special_tokens` for the list that transformers 4 takes for a mapping."""
    extra = config.get("extra_special_tokens")
    if not isinstance(extra, list):
        return config
    new = {key: value for key, value in config.items() if key != "extra_special_tokens"}
    return new | ({"additional_special_tokens": extra} if extra else {})


def _sides(config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """The side of an embedder on which texts are padded and cut, where the class has another."""
    if not (folder / "modules.json").is_file():
        return {}
    names = ("padding_side", "truncation_side")
    return {name: "right" for name in names if config.get(name) is None}


def _legacy_of(config: Mapping[str, Any], base: Path | None) -> dict[str, Any]:
    """The base's `legacy`, which decides where a space is put and is not saved."""
    if "legacy" in config or base is None or not (base / CONFIG).is_file():
        return {}
    legacy = read_object(base / CONFIG).get("legacy")
    return {} if legacy is None else {"legacy": legacy}


def _for_class(
    config: dict[str, Any], content: Mapping[str, Any], template: Template
) -> dict[str, Any]:
    """The arguments that a class reads beside `tokenizer.json`, made to say the same."""
    new = {key: value for key, value in config.items() if key != "add_prefix_space"}
    new.pop("add_bos_token", None)
    new.pop("add_eos_token", None)
    name = str(config["tokenizer_class"])
    name = name if name == GENERIC else name.removesuffix("Fast")
    prefix = _prefix_space(config, content)
    if name in FROM_SLOW and prefix is False:
        name = GENERIC
    if name in REBUILT:
        flags = _flags(config, template)
        new |= flags
        name = name if flags else GENERIC
    if name == GENERIC:
        new["tokenizer_class"] = GENERIC
    if prefix is not None and name not in FROM_SLOW:
        new["add_prefix_space"] = prefix
    normalizer = content.get("normalizer") or {}
    if normalizer.get("type") == "BertNormalizer" and name != GENERIC:
        new |= {key: normalizer[theirs] for key, theirs in NORMALIZER_KEYS.items()}
    return new


def _prefix_space(config: Mapping[str, Any], content: Mapping[str, Any]) -> bool | None:
    """Whether a space is put before a text; None where nothing says so."""
    own = (content.get("pre_tokenizer") or {}).get("add_prefix_space")
    given = config.get("add_prefix_space") if own is None else own
    return None if given is None else bool(given)


def _flags(config: Mapping[str, Any], template: Template) -> dict[str, bool]:
    """The two flags that make this template; none where they cannot."""
    bos, eos = text_of(config.get("bos_token")), text_of(config.get("eos_token"))
    if template.before not in ((), (bos,)) or template.after not in ((), (eos,)):
        return {}
    return {"add_bos_token": bool(template.before), "add_eos_token": bool(template.after)}


def text_of(token: object) -> str | None:
    """A special token, which files give as text or as an object."""
    return token.get("content") if isinstance(token, dict) else token  # type: ignore[return-value]


def _limit(folder: Path, content: dict[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Let `tokenizer.json` cut texts at the model's length, where it cuts them."""
    cut, longest = content.get("truncation"), config.get("model_max_length")
    if not cut or not isinstance(longest, int) or cut["max_length"] == longest:
        return []
    content["truncation"] = cut | {"max_length": longest}
    write_json(folder / TOKENIZER, content)
    return [f"{TOKENIZER}: truncation at {longest} tokens, was {cut['max_length']}"]


def _reloads(folder: Path, content: Mapping[str, Any]) -> bool:
    """Whether transformers makes the tokenizer of `tokenizer.json` from the class that is named.

    Most classes take the vocabulary alone, and have rules of their own for the rest.
    """
    from transformers import AutoTokenizer

    try:
        again = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return True
    parts = json.loads(again.backend_tokenizer.to_str())
    return all(parts[name] == content[name]
               for name in ("normalizer", "pre_tokenizer", "post_processor"))  # fmt: skip


def _special_tokens(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """The special tokens in a file of their own, as older readers look for them."""
    path = folder / SPECIAL
    old = read_object(path) if path.is_file() else {}
    names = (*SPECIAL_NAMES, "additional_special_tokens")
    own = {name: config[name] for name in names if config.get(name)}
    same = {name for name in own if name in old and _texts(old[name]) == _texts(own[name])}
    new = {name: old[name] if name in same else own[name] for name in own}
    if old == new:
        return []
    write_json(path, new)
    if not old:
        return [f"{SPECIAL}: written, for readers that take special tokens from it"]
    return differences(SPECIAL, old, new)


def _texts(tokens: object) -> list[str | None]:
    """Special tokens as texts."""
    return [text_of(token) for token in (tokens if isinstance(tokens, list) else [tokens])]
