"""Texts to token ids, the same in training, evaluation and export; it must not import torch.

`load_tokenizer` alone imports transformers, when called. Encoding goes through the Rust tokenizer,
which a worker process can load without it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from trainer.data.fields import shown
from trainer.data.prompts import prompt_prefix
from trainer.errors import DataError, RecipeError
from trainer.recipe.schema import (
    MEANS,
    DataRecipe,
    EvalSetRecipe,
    Pooling,
    Recipe,
    SourceRecipe,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


SHOWN_TOKENS = 8
"""Special tokens that a message names."""
WORDS_KEPT = 1 << 17
"""Words whose tokens a BPE or Unigram model keeps. With its own 10,000 a text of 100,000 different
words takes some 7% longer."""


class Encoded(NamedTuple):
    """Token ids of some texts with one prompt."""

    token_ids: list[np.ndarray]
    """Per text, int32 [length], with prompt and end token, unpadded."""
    num_prompt_tokens: int
    """Leading tokens to leave out of a mean."""


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """A tokenizer with the prompt rules of a recipe; can be pickled."""

    tokenizer: Tokenizer
    """Its own copy; truncation is set anew at each call."""
    special_ids: frozenset[int]
    """Ids of special tokens."""
    template: str
    """`data.prompt_template`."""
    pool_instruction: bool
    """Whether pooling includes the prompt's tokens."""
    refused_ids: Mapping[int, str] = field(default_factory=dict)
    """Tokens by their ids that the model has no row for."""

    def __post_init__(self) -> None:
        _keep_words(self.tokenizer)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        _keep_words(self.tokenizer)

    def encode(self, texts: Sequence[str], *, instruction: str, max_tokens: int) -> Encoded:
        """Token ids of texts behind an instruction, cut to `max_tokens` with the end token kept.

        Raises:
            DataError: if the instruction leaves no room for text, or a text has no tokens.
        """
        prefix = prompt_prefix(self.template, instruction)
        prompt_ids = self._prompt_ids(prefix)
        if len(prompt_ids) >= max_tokens:
            raise DataError(
                f"data: instruction = {shown(instruction)} ({len(prompt_ids)} tokens with special "
                f"tokens); expected fewer than max_tokens = {max_tokens}, so that text fits. "
                "Shorten it, or raise data.query_max_tokens or data.passage_max_tokens."
            )
        self.tokenizer.enable_truncation(max_tokens)
        encodings = self.tokenizer.encode_batch_fast([prefix + text for text in texts])
        token_ids = [np.array(encoding.ids, np.int32) for encoding in encodings]
        for text, ids in zip(texts, token_ids, strict=True):
            if not len(ids):
                raise DataError(f"data: text = {shown(text)}; expected a token. Remove the row.")
            if self.refused_ids:
                self._refuse(text, ids)
        return Encoded(token_ids, 0 if self.pool_instruction else self._num_prompt(prompt_ids))

    def _refuse(self, text: str, ids: np.ndarray) -> None:
        """Raises for a text with a token that the model has no row for."""
        found = next((self.refused_ids[i] for i in ids.tolist() if i in self.refused_ids), None)
        if found is not None:
            raise DataError(
                f"data: text = {shown(text)}; expected no {found}, a token of the tokenizer that "
                "the model has no row for. Remove the row."
            )

    def _prompt_ids(self, prefix: str) -> list[int]:
        self.tokenizer.no_truncation()
        return self.tokenizer.encode(prefix).ids if prefix else []

    def num_first_tokens(self, instruction: str) -> int:
        """Tokens with which texts behind an instruction begin, up to where a text may join in."""
        return self._num_prompt(self._prompt_ids(prompt_prefix(self.template, instruction)))

    def _num_prompt(self, prompt_ids: list[int]) -> int:
        """Tokens of the prompt and of what stands before it, but not the end token.

        The rule of sentence-transformers' `include_prompt=False`, so that exports agree.
        """
        ends_special = bool(prompt_ids) and prompt_ids[-1] in self.special_ids
        return len(prompt_ids) - ends_special


def _keep_words(tokenizer: Tokenizer) -> None:
    """Let the tokenizer's model keep as many words as large corpora have; ids stay the same."""
    resize = getattr(tokenizer.model, "_resize_cache", None)
    if resize is not None:
        resize(WORDS_KEPT)


def load_tokenizer(
    path: str,
    *,
    pooling: Pooling,
    end_token: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> "PreTrainedTokenizerFast":
    """The tokenizer of a model, made to end each text with its end token where that is pooled.

    A tokenizer that already ends texts with a special token of its own is left as it is. Saved,
    it loads elsewhere with the same rule.

    Args:
        path: model folder or hub id.
        pooling: `last` needs an end token.
        end_token: special token that ends texts whatever the pooling and whatever ended them.
        revision: commit of a hub model.
        trust_remote_code: run tokenizer code that comes with the model.

    Raises:
        DataError: if there is no fast tokenizer, or no end token where one is needed.
        RecipeError: if `end_token` is no special token of the tokenizer.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # binds code that the tokenizer takes from another repository, too
    pinned = {"code_revision": revision} if trust_remote_code else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=revision, trust_remote_code=trust_remote_code, **pinned
        )
    except (OSError, ValueError) as error:
        raise _no_tokenizer(path, shown(str(error))) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError(
            f"{path}: tokenizer = {type(tokenizer).__name__}; expected a fast one (tokenizer.json)."
            " Convert it with transformers."
        )
    if not tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).ids:
        # transformers makes up an empty one for a folder that has a config alone
        raise _no_tokenizer(path, f"{len(tokenizer)} tokens, none for the letter a")
    if end_token is not None:
        _choose_end_token(tokenizer, end_token, path)
    elif pooling == "last":
        _append_end_token(tokenizer, path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    tokenizer.truncation_side = "right"
    return tokenizer


def make_encoder(
    tokenizer: "PreTrainedTokenizerFast",
    data: DataRecipe,
    *,
    pooling: Pooling,
    num_ids: int | None = None,
) -> TextEncoder:
    """An encoder with its own copy of a tokenizer.

    Only a mean can leave the instruction out: `last` never reads it, `cls` is before it.

    Args:
        tokenizer: from `load_tokenizer`.
        data: its template, and whether the instruction is pooled.
        pooling: of the recipe.
        num_ids: rows of the model's embedding matrix, where they are known.

    Raises:
        RecipeError: if the prompt template has a wrong form.
    """
    prompt_prefix(data.prompt_template, "")
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    return TextEncoder(
        tokenizer=backend,
        special_ids=frozenset(tokenizer.all_special_ids),
        template=data.prompt_template,
        pool_instruction=data.pool_instruction or pooling not in MEANS,
        refused_ids={
            i: token
            for token, i in backend.get_vocab().items()
            if num_ids is not None and i >= num_ids
        },
    )


def check_instructions(encoder: TextEncoder, recipe: Recipe) -> None:
    """Refuses, before training, instructions that leave no room for text.

    Raises:
        DataError: names the source or evaluation set and the key.
    """
    users: list[tuple[str, SourceRecipe | EvalSetRecipe]]
    users = [(f"data.sources.{source.name}", source) for source in recipe.data.sources]
    users += [(f"eval.sets.{held_out.name}", held_out) for held_out in recipe.eval.sets]
    for owner, user in users:
        limits = {
            "query_instruction": (user.query_instruction, recipe.data.query_max_tokens),
            "passage_instruction": (user.passage_instruction, recipe.data.passage_max_tokens),
        }
        for key, (instruction, max_tokens) in limits.items():
            try:
                encoder.encode(["a"], instruction=instruction, max_tokens=max_tokens)
            except DataError as error:
                raise DataError(f"{owner}.{key}: {error}") from error


def _no_tokenizer(path: str, found: str) -> DataError:
    return DataError(
        f"{path}: tokenizer = {found}; expected tokenizer files beside the model. Correct "
        "model.path or add them."
    )


def _choose_end_token(tokenizer: "PreTrainedTokenizerFast", end_token: str, path: str) -> None:
    """Ends texts with this token, which becomes the tokenizer's end token.

    Clients that put an end token after texts themselves take that of the tokenizer.
    """
    added = tokenizer.added_tokens_decoder.values()
    special = {str(token) for token in added if token.special} | {*tokenizer.all_special_tokens}
    if end_token not in special or end_token not in tokenizer.get_vocab():
        some = ", ".join(sorted(special)[:SHOWN_TOKENS]) or "none"
        raise RecipeError(
            f"recipe: model.end_token = {shown(end_token)}; expected a special token of the "
            f"tokenizer in {path} ({some}). Correct it, or remove it for the tokenizer's own."
        )
    tokenizer.eos_token = end_token
    _end_with(tokenizer, end_token)


def _append_end_token(tokenizer: "PreTrainedTokenizerFast", path: str) -> None:
    """Ends texts with the tokenizer's end token, unless a special token ends them."""
    special_ids = set(tokenizer.all_special_ids)
    if tokenizer.backend_tokenizer.encode("a").ids[-1] in special_ids:
        return
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"{path}: eos_token = null; expected an end token, as model.pooling = last reads it. "
            "Set eos_token in the tokenizer, or use model.pooling=mean."
        )
    _end_with(tokenizer, str(tokenizer.eos_token))


def _end_with(tokenizer: "PreTrainedTokenizerFast", end: str) -> None:
    """Sets the template that puts one token after each text, also after a cut one."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    encoding = backend.encode("a")
    marks = encoding.special_tokens_mask
    before = encoding.tokens[: marks.index(0)]
    single = " ".join(f"{piece}:0" for piece in [*before, "$A", end])
    backend.post_processor = TemplateProcessing(
        single=single,
        pair=f"{single} $B:1 {end}:1",
        special_tokens=[(name, backend.token_to_id(name)) for name in {*before, end}],
    )
