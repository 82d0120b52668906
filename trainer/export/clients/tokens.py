"""Token ids as clients get them: the template of special tokens, its classes, padding, limits.

Where the package tokenizers is installed, the texts of `parity.json` are tokenised too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from trainer.export.clients.finding import Finding, Rule
from trainer.export.clients.folder import (
    SENTENCE,
    TOKENIZER,
    TOKENIZER_CONFIG,
    ExportFolder,
)

NEW_CLASSES = frozenset(
    ("TokenizersBackend", "PythonBackend", "SentencePieceBackend", "MistralCommonBackend")
)
"""Classes that transformers has since release 5 only."""
NEW_KEYS = ("backend", "is_local", "local_files_only")
"""Keys of tokenizer_config.json that older readers and converters trip over."""
REBUILT = {
    "LlamaTokenizer": (True, False),
    "CodeLlamaTokenizer": (True, False),
    "GemmaTokenizer": (True, False),
    "CohereTokenizer": (True, False),
    "GPTNeoXTokenizer": (False, False),
}
"""Classes of transformers 4 that make the template themselves, with their defaults of
`add_bos_token` and `add_eos_token`."""
LEFT = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer")
"""Classes that pad on the left unless the file says otherwise."""
UNLIMITED = 10**9
"""A `model_max_length` from here on is none."""


@dataclass(frozen=True)
class Template:
    """Special tokens around a text."""

    before: tuple[int, ...]
    """Ids."""
    after: tuple[int, ...]
    """Ids."""


def class_of(folder: ExportFolder) -> str:
    """The tokenizer's class without the suffix of its fast form; empty where none is named."""
    return str(folder.tokenizer_config.get("tokenizer_class") or "").removesuffix("Fast")


def json_template(tokenizer: Mapping[str, Any]) -> Template:
    """The special tokens that tokenizer.json puts around a text."""
    return _template(tokenizer.get("post_processor"))


def _template(processor: object) -> Template:
    """Of a post-processor, or of the last one of a sequence that adds tokens."""
    if not isinstance(processor, dict):
        return Template((), ())
    kind = processor.get("type")
    if kind == "Sequence":
        found = [_template(part) for part in processor.get("processors", [])]
        return next((t for t in reversed(found) if t.before or t.after), Template((), ()))
    if kind in ("BertProcessing", "RobertaProcessing"):
        return Template((processor["cls"][1],), (processor["sep"][1],))
    if kind != "TemplateProcessing":
        return Template((), ())
    ids = {name: entry["ids"] for name, entry in processor.get("special_tokens", {}).items()}
    sides: list[list[int]] = [[], []]
    is_after = False
    for piece in processor.get("single", []):
        if "Sequence" in piece:
            is_after = True
        elif "SpecialToken" in piece:
            sides[is_after] += ids.get(piece["SpecialToken"]["id"], [])
    return Template(tuple(sides[0]), tuple(sides[1]))


def id_of(folder: ExportFolder, role: str) -> int | None:
    """Id of a special token that tokenizer_config.json names, such as `eos_token`."""
    named = folder.tokenizer_config.get(role)
    token = named.get("content") if isinstance(named, dict) else named
    added = folder.tokenizer.get("added_tokens") or []
    found = next((entry["id"] for entry in added if entry.get("content") == token), None)
    if found is None:
        vocabulary = (folder.tokenizer.get("model") or {}).get("vocab")
        found = vocabulary.get(token) if isinstance(vocabulary, dict) else None
    return found if isinstance(found, int) else None


def flagged_template(folder: ExportFolder, *, bos: bool, eos: bool) -> Template:
    """The template that is made of two flags, those of tokenizer_config.json or these defaults."""
    config = folder.tokenizer_config
    flags = (config.get("add_bos_token", bos), config.get("add_eos_token", eos))
    ids = [
        (found,) if flag and (found := id_of(folder, role)) is not None else ()
        for flag, role in zip(flags, ("bos_token", "eos_token"), strict=True)
    ]
    return Template(*ids)


def template_of_4(folder: ExportFolder) -> Template:
    """As transformers 4 has it."""
    name = class_of(folder)
    if name not in REBUILT:
        return json_template(folder.tokenizer)
    bos, eos = REBUILT[name]
    return flagged_template(folder, bos=bos, eos=eos)


def template_of_5(folder: ExportFolder) -> Template:
    """As transformers 5 has it: made anew wherever one of the flags is written."""
    if {"add_bos_token", "add_eos_token"} & folder.tokenizer_config.keys():
        return flagged_template(folder, bos=False, eos=False)
    return json_template(folder.tokenizer)


def by_json(folder: ExportFolder) -> Iterator[Finding]:
    """Clients that read tokenizer.json alone."""
    yield from _compared(folder, json_template(folder.tokenizer), TOKENIZER, "post_processor")


def by_transformers_4(folder: ExportFolder) -> Iterator[Finding]:
    """Transformers 4: the class is known, and its template gives the trainer's ids."""
    name = folder.tokenizer_config.get("tokenizer_class")
    if name in NEW_CLASSES:
        yield Finding(
            file=TOKENIZER_CONFIG, field="tokenizer_class", found=name,
            expected="a class that releases before 5 have, such as PreTrainedTokenizerFast",
            why="It knows no such class and stops.", effect="refused",
        )  # fmt: skip
        return
    place = (TOKENIZER, "post_processor")
    if class_of(folder) in REBUILT:
        place = (TOKENIZER_CONFIG, "add_eos_token")
    yield from _compared(folder, template_of_4(folder), *place)


def by_transformers_5(folder: ExportFolder) -> Iterator[Finding]:
    """Transformers 5: its template gives the trainer's ids."""
    template = template_of_5(folder)
    flagged = template != json_template(folder.tokenizer)
    place = (TOKENIZER_CONFIG, "add_eos_token") if flagged else (TOKENIZER, "post_processor")
    yield from _compared(folder, template, *place)


def _compared(folder: ExportFolder, template: Template, file: str, field: str) -> Iterator[Finding]:
    """Findings of a client that puts these tokens around a text."""
    end = folder.trained.end_token
    if end is not None and template.after[-1:] != (end,):
        found = template.after[-1] if template.after else None
        if field == "add_eos_token":
            found = folder.tokenizer_config.get(field)
        yield Finding(
            file=file, field=field, found=found,
            expected="true" if field == "add_eos_token" else f"an end token, id {end}",
            why=f"Texts do not end in token {end}, as they did in training.",
        )  # fmt: skip
        return
    mismatch = _mismatch(folder, template)
    if mismatch is not None:
        yield Finding(
            file=file if field == "add_eos_token" else TOKENIZER,
            field="add_bos_token" if field == "add_eos_token" else "token ids",
            found=mismatch[0], expected=mismatch[1], why="Texts have other tokens.",
        )  # fmt: skip


def _mismatch(folder: ExportFolder, template: Template) -> tuple[str, str] | None:
    """The first text of parity.json with other ids: what is found, what is expected."""
    if folder.parity is None or not folder.tokenizer or find_spec("tokenizers") is None:
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder.path / TOKENIZER))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    limit = folder.parity.settings.max_tokens - len(template.before) - len(template.after)
    for number, text in enumerate(folder.parity.texts):
        inner = tokenizer.encode(text.whole, add_special_tokens=False).ids[: max(0, limit)]
        ids = [*template.before, *inner, *template.after]
        difference = first_difference(ids, text.token_ids)
        if difference is not None:
            return (f"text {number}, {difference[0]}", difference[1])
    return None


def first_difference(found: Sequence[int], expected: Sequence[int]) -> tuple[str, str] | None:
    """Where two lists of ids part, and what each has there; None if they are equal."""
    if list(found) == list(expected):
        return None
    at = next(
        (i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]),
        min(len(found), len(expected)),
    )
    got, wanted = (ids[at] if at < len(ids) else "the end" for ids in (found, expected))
    return f"position {at}: {got} (of {len(found)} ids)", f"{wanted} (of {len(expected)} ids)"


def padding_side(folder: ExportFolder) -> Iterator[Finding]:
    """Batches are padded on the right, as in training."""
    default = "left" if class_of(folder) in LEFT else "right"
    written = folder.tokenizer_config.get("padding_side")
    if (written or default) != "right":
        yield Finding(
            file=TOKENIZER_CONFIG, field="padding_side", found=written, expected="right",
            why="Batches are padded on the left: positions shift, and code that pools by position "
            "reads other tokens.",
        )  # fmt: skip


def plain_limit(folder: ExportFolder) -> Iterator[Finding]:
    """A plain call of the tokenizer that cuts texts cuts them where the trainer does."""
    found, expected = folder.tokenizer_config.get("model_max_length"), folder.trained.max_tokens
    written = folder.sentence.get("max_seq_length")
    if expected is None:
        return
    if not isinstance(found, int | float) or found >= UNLIMITED or found < expected:
        why = "It cuts texts elsewhere, or not at all."
        yield Finding(
            file=TOKENIZER_CONFIG, field="model_max_length", found=found,
            expected=written if isinstance(written, int) and written >= expected else expected,
            why=why,
        )  # fmt: skip


def sentence_limit(folder: ExportFolder) -> Iterator[Finding]:
    """sentence-transformers cuts texts where the trainer does."""
    found, least = folder.sentence.get("max_seq_length"), folder.trained.max_tokens
    plain = folder.tokenizer_config.get("model_max_length")
    expected = plain if isinstance(plain, int) and plain < UNLIMITED else least
    if least is None or expected is None:
        return
    if not isinstance(found, int) or found < least or found != expected:
        yield Finding(
            file=SENTENCE, field="max_seq_length", found=found, expected=max(expected, least),
            why="Texts are cut elsewhere than in training.",
        )  # fmt: skip


def lower_case(folder: ExportFolder) -> Iterator[Finding]:
    """No client lowers the letters of a text that the trainer did not."""
    if folder.sentence.get("do_lower_case") is True:
        yield Finding(
            file=SENTENCE, field="do_lower_case", found=True, expected=False,
            why="Texts are lowered before they are tokenised.",
        )  # fmt: skip


def outer_blanks(folder: ExportFolder) -> Iterator[Finding]:
    """sentence-transformers 3 strips what it tokenises, the prompt's first blanks included."""
    for name, prompt in folder.trained.prompts.items():
        if prompt.strip() and prompt != prompt.lstrip():
            yield Finding(
                file="config_sentence_transformers.json", field=f"prompts.{name}",
                found=repr(prompt), expected="no blank at its beginning",
                why="Blanks at the beginning of a prompt are stripped.",
            )  # fmt: skip


TOKEN_RULES_4: tuple[Rule, ...] = (by_transformers_4, padding_side, plain_limit)
TOKEN_RULES_5: tuple[Rule, ...] = (by_transformers_5, padding_side, plain_limit)
