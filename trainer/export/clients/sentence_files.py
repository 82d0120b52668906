"""Pooling, prompts and modules as clients read them from the files of sentence-transformers."""

from collections.abc import Iterator, Sequence

from trainer.export.clients.finding import Effect, Finding, Rule
from trainer.export.clients.folder import (
    MODULES,
    NEW_POOLINGS,
    POOLING,
    POOLINGS,
    PROMPTS,
    ExportFolder,
)
from trainer.recipe.schema import MEANS

OLD_TYPE = "sentence_transformers.models."
"""How types of modules begin that every release and server knows."""
KEY_OF = {
    "last": "pooling_mode_lasttoken",
    "mean": "pooling_mode_mean_tokens",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
    "cls": "pooling_mode_cls_token",
}
WEIGHTED = "weighted_mean"


def pooling_mode(folder: ExportFolder) -> Iterator[Finding]:
    """Exactly the trained pooling is on, in either form of the file."""
    trained, found = folder.trained.pooling, folder.poolings
    if found != [trained]:
        key = "pooling_mode" if "pooling_mode" in folder.pooling else KEY_OF.get(trained, trained)
        yield Finding(
            file=POOLING, field=key, found=", ".join(found) or folder.pooling.get(key),
            expected=trained, why="It pools other tokens than the trainer.",
        )  # fmt: skip


def pooling_prompt(folder: ExportFolder) -> Iterator[Finding]:
    """A mean leaves the prompt out exactly where the trainer did."""
    trained = folder.trained
    includes = folder.pooling.get("include_prompt") is not False
    if trained.pooling in MEANS and includes != trained.include_prompt:
        yield Finding(
            file=POOLING, field="include_prompt", found=folder.pooling.get("include_prompt"),
            expected=trained.include_prompt, why="It pools other tokens than the trainer.",
        )  # fmt: skip


def prompt_is_pooled(folder: ExportFolder) -> Iterator[Finding]:
    """For servers that always pool the prompt's tokens."""
    trained = folder.trained
    if trained.pooling in MEANS and not trained.include_prompt and any(trained.prompts.values()):
        yield Finding(
            file=POOLING, field="include_prompt", found=False, expected=True,
            why="It reads no such key and pools the prompt's tokens too.",
        )  # fmt: skip


def no_weighted_mean(why: str) -> Rule:
    """A rule for clients that have the other poolings alone.

    Args:
        why: where the client stops.
    """

    def rule(folder: ExportFolder) -> Iterator[Finding]:
        if WEIGHTED in folder.poolings:
            yield Finding(
                file=POOLING, field=KEY_OF[WEIGHTED], found=True,
                expected="pooling last, mean or cls", why=why, effect="refused",
            )  # fmt: skip

    return rule


def dense_type(folder: ExportFolder) -> Iterator[Finding]:
    """For servers that find the dense layer by its first name, and have two activations."""
    if folder.dense is None:
        return
    for number, module in enumerate(folder.modules):
        found = str(module.get("type"))
        if found.rpartition(".")[2] == "Dense" and found != OLD_TYPE + "Dense":
            yield Finding(
                file=MODULES, field=f"[{number}].type", found=found, expected=OLD_TYPE + "Dense",
                why="It finds no dense layer, and leaves it out.",
            )  # fmt: skip


def no_dense(why: str) -> Rule:
    """A rule for clients that take the pooled state for the vector.

    Args:
        why: what the client does.
    """

    def rule(folder: ExportFolder) -> Iterator[Finding]:
        if folder.dense is not None:
            yield Finding(
                file=MODULES, field="type", found="a dense layer",
                expected="pooling and normalisation only", why=why,
            )  # fmt: skip

    return rule


def pooling_booleans(effect: Effect, why: str, *, needed: Sequence[str] = ()) -> "PoolingRule":
    """A rule for clients that read the boolean keys alone."""
    return PoolingRule(effect, why, tuple(needed))


class PoolingRule:
    """The trained pooling is on in the boolean keys."""

    def __init__(self, effect: Effect, why: str, needed: tuple[str, ...]) -> None:
        self.effect, self.why, self.needed = effect, why, needed

    def __call__(self, folder: ExportFolder) -> Iterator[Finding]:
        """Findings of one folder."""
        key = KEY_OF.get(folder.trained.pooling, "pooling_mode_mean_tokens")
        missing = [name for name in (*self.needed, key) if name not in folder.pooling]
        if missing:
            yield Finding(
                file=POOLING, field=missing[0], found=None, expected=missing[0] == key,
                why=self.why, effect=self.effect,
            )  # fmt: skip


def old_pooling_file(folder: ExportFolder) -> Iterator[Finding]:
    """sentence-transformers 3 knows no key that later releases brought."""
    known = {"word_embedding_dimension", "pooling_mode", "include_prompt", *POOLINGS}
    for key in folder.pooling.keys() - known:
        yield Finding(
            file=POOLING, field=key, found=folder.pooling[key],
            expected="no such key", why="It stops at a key that it does not know.",
            effect="refused",
        )  # fmt: skip
    mode = folder.pooling.get("pooling_mode")
    if mode is not None and mode not in NEW_POOLINGS:
        yield Finding(
            file=POOLING, field="pooling_mode", found=mode, expected="one word",
            why="It stops at another value.", effect="refused",
        )  # fmt: skip


def prompts(folder: ExportFolder) -> Iterator[Finding]:
    """Every prompt of training is there under its name, and none is put before all texts."""
    found = folder.prompts
    for name, prompt in folder.trained.prompts.items():
        if found.get(name) != prompt:
            yield Finding(
                file=PROMPTS, field=f"prompts.{name}", found=found.get(name),
                expected=repr(prompt), why="Texts are embedded without the prompt of training.",
            )  # fmt: skip
    default = folder.sentence_config.get("default_prompt_name")
    if default is not None:
        yield Finding(
            file=PROMPTS, field="default_prompt_name", found=default, expected="null",
            why="A prompt is put before texts that ask for none.",
        )  # fmt: skip


def unit_norm(folder: ExportFolder) -> Iterator[Finding]:
    """Vectors have norm 1."""
    types = [str(module.get("type")) for module in folder.modules]
    if not any(name.endswith("Normalize") for name in types):
        yield Finding(
            file=MODULES, field="type", found=", ".join(types),
            expected="a module Normalize at the end", why="Vectors have another norm.",
        )  # fmt: skip


def old_types(effect: Effect, why: str) -> "TypesRule":
    """A rule for clients that know the types of modules by their first names."""
    return TypesRule(effect, why)


class TypesRule:
    """Types of modules are written as the first releases wrote them."""

    def __init__(self, effect: Effect, why: str) -> None:
        self.effect, self.why = effect, why

    def __call__(self, folder: ExportFolder) -> Iterator[Finding]:
        """Findings of one folder."""
        for number, module in enumerate(folder.modules):
            found = str(module.get("type"))
            expected = OLD_TYPE + found.rsplit(".", 1)[-1]
            if found != expected:
                yield Finding(
                    file=MODULES, field=f"[{number}].type", found=found, expected=expected,
                    why=self.why, effect=self.effect,
                )  # fmt: skip
