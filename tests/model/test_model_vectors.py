"""One text, one vector: however it is padded, batched, cut or loaded elsewhere.

200 texts of mixed length through tiny decoders of four families, as query and as passage. All
comparisons are in float32 with tolerance 1e-5, the sums of attention coming in another order.
"""

import random
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoModel,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from tests.support.corpus import WORDS, save_byte_tokenizer
from tests.support.tiny import make_recipe
from trainer.data.batch import Texts
from trainer.data.tokens import load_tokenizer, make_encoder
from trainer.engine.chunks import plan_chunks
from trainer.engine.materialise import lengths_of, make_chunks
from trainer.export.embedder_files import write_embedder_files
from trainer.model.backbone import load_backbone
from trainer.model.embedder import Embedder
from trainer.recipe.schema import DataRecipe, ModelRecipe, Pooling, Recipe, SourceRecipe

FAMILIES = {
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "llama": LlamaConfig,
    "mistral": MistralConfig,
}
VOCABULARY = 400
MAX_TOKENS = 24
INSTRUCTIONS = {"query": "w1 w2 ", "document": "w3 "}


def config_of(family: str) -> PretrainedConfig:
    changes: dict[str, Any] = {"sliding_window": None} if family == "mistral" else {}
    return FAMILIES[family](
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        **changes,
    )


def texts() -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 40))) for _ in range(200)]


def recipe_for(folder: Path, attention: Any, pooling: Any) -> Recipe:
    source = SourceRecipe(
        name="ir",
        task="ir",
        path="unused",
        query_instruction=INSTRUCTIONS["query"],
        passage_instruction=INSTRUCTIONS["document"],
    )
    return make_recipe(
        folder,
        model=ModelRecipe(path=str(folder), pooling=pooling, attention=attention),
        data=DataRecipe(
            sources=(source,), query_max_tokens=MAX_TOKENS, passage_max_tokens=MAX_TOKENS
        ),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_batching_and_export_give_the_same_vectors(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModel.from_config(config_of(family)).save_pretrained(tmp_path)
    save_byte_tokenizer(tmp_path, VOCABULARY)
    recipe = recipe_for(tmp_path, "causal", "last")
    tokenizer = load_tokenizer(str(tmp_path), pooling="last")
    backbone = load_backbone(recipe.model, str(tmp_path), kernel="sdpa", zero3_config=None)
    embedder = Embedder(backbone, pooling="last", attention="causal").eval()
    write_embedder_files(tmp_path, recipe, config=backbone.config, tokenizer=tokenizer)
    exported = SentenceTransformer(str(tmp_path))
    encoder = make_encoder(tokenizer, recipe.data, pooling="last")
    for side, instruction in INSTRUCTIONS.items():
        encoded = encoder.encode(texts(), instruction=instruction, max_tokens=MAX_TOKENS)
        longest = max(map(len, encoded.token_ids))
        assert longest == MAX_TOKENS, "some texts must be cut"
        assert {int(ids[-1]) for ids in encoded.token_ids} == {2}, "the end token is kept"
        right = embed(embedder, encoded.token_ids, max_tokens=1024)
        alone = embed(embedder, encoded.token_ids, max_tokens=1)
        left = embed_left_padded(backbone, encoded.token_ids)
        assert np.abs(right - alone).max() < 1e-5
        assert np.abs(right - left).max() < 1e-5
        for padding_side in ("right", "left"):
            exported.tokenizer.padding_side = padding_side
            theirs = exported.encode(texts(), prompt_name=side, batch_size=32)
            assert np.abs(right - theirs).max() < 1e-5, (side, padding_side)


def embed(embedder: Embedder, token_ids: list[np.ndarray], *, max_tokens: int) -> np.ndarray:
    """Vectors by the trainer's own chunks, in the order of the texts."""
    distinct = Texts(token_ids=tuple(token_ids), num_prompt_tokens=np.zeros(len(token_ids), int))
    plan = plan_chunks(lengths_of(distinct), num_ranks=1, max_tokens=max_tokens)
    chunks = make_chunks(distinct, plan.ranks[0], key=0, device=torch.device("cpu"))
    with torch.no_grad():
        vectors = torch.cat([embedder(chunk)[0] for chunk in chunks])
    return vectors[np.argsort(plan.rows(0))].numpy()


def embed_left_padded(backbone: torch.nn.Module, token_ids: list[np.ndarray]) -> np.ndarray:
    """Vectors by transformers with a mask: padded on the left, the end token comes last."""
    longest = max(map(len, token_ids))
    ids = torch.zeros(len(token_ids), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(token_ids):
        ids[row, longest - len(text) :] = torch.from_numpy(text)
        mask[row, longest - len(text) :] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    with torch.no_grad():
        hidden = backbone(input_ids=ids, attention_mask=mask, position_ids=positions)[0]
    return torch.nn.functional.normalize(hidden[:, -1], dim=-1).numpy()


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_bidirectional_decoder_sees_all_of_its_text_and_nothing_else(
    pooling: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    AutoModel.from_config(config_of("qwen3")).save_pretrained(tmp_path)
    recipe = recipe_for(tmp_path, "bidirectional", pooling)
    backbone = load_backbone(recipe.model, str(tmp_path), kernel="sdpa", zero3_config=None)
    embedder = Embedder(backbone, pooling=pooling, attention="bidirectional").eval()
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, VOCABULARY, size=n).astype(np.int32) for n in rng.integers(2, 24, 50)]
    together, alone = (embed(embedder, ids, max_tokens=m) for m in (2048, 1))
    assert np.abs(together - alone).max() < 1e-5
    changed = [np.concatenate([text[:-1], [2]]).astype(np.int32) for text in ids]
    # the first token's vector depends on the last token
    assert np.abs(embed(embedder, changed, max_tokens=2048) - together).max() > 1e-3
