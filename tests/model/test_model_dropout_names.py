"""`model.dropout` reaches every dropout of a backbone, whatever its config calls it."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from torch import nn

from tests.support import tiny
from trainer.errors import RecipeError
from trainer.model.backbone import load_backbone, load_config
from trainer.model.dropout_names import override_dropouts
from trainer.recipe.schema import ModelRecipe

SMALL = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
HIDDEN = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(**SMALL),
    "gptj": lambda: transformers.GPTJConfig(**SMALL, rotary_dim=8),
    "gpt_bigcode": lambda: transformers.GPTBigCodeConfig(**SMALL),
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        vocab_size=97, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global"], 2]]
    ),
    "phi": lambda: transformers.PhiConfig(**HIDDEN),
    "phi3": lambda: transformers.Phi3Config(**HIDDEN, pad_token_id=0),
    "mpt": lambda: transformers.MptConfig(
        vocab_size=97, d_model=32, n_layers=2, n_heads=4, expansion_ratio=2
    ),
    "bert": lambda: transformers.BertConfig(**HIDDEN),
    "qwen3": tiny.qwen3_config,
}


def dropouts_of(backbone: nn.Module) -> set[float]:
    """Probabilities that the modules of a backbone hold."""
    names = ("attention_dropout", "attn_dropout_p", "resid_attn_dropout")
    held = {getattr(module, name, None) for module in backbone.modules() for name in names}
    numbers = {float(value) for value in held if isinstance(value, int | float)}
    return numbers | {m.p for m in backbone.modules() if isinstance(m, nn.Dropout)}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("as_integer", [False, True])
def test_every_dropout_is_that_of_the_recipe(tmp_path: Path, kind: str, as_integer: bool) -> None:
    folder = str(tiny.save_model(CONFIGS[kind](), tmp_path))
    if as_integer:
        file = tmp_path / "config.json"
        written = json.loads(file.read_text())
        override_dropouts_as_text(written)
        file.write_text(json.dumps(written))
    attention: Any = "bidirectional" if kind == "bert" else "causal"
    recipe = ModelRecipe(path=folder, dropout=0.3, attention=attention)
    backbone = load_backbone(recipe, folder, kernel="eager", zero3_config=None)
    assert dropouts_of(backbone) == {0.3}


def override_dropouts_as_text(section: dict[str, Any]) -> None:
    """Write an integer 0 for each probability."""
    for name, value in section.items():
        if isinstance(value, dict):
            override_dropouts_as_text(value)
        elif isinstance(value, float) and "drop" in name:
            section[name] = 0


def test_numbers_that_are_no_dropout_stay() -> None:
    config = transformers.OPTConfig(layerdrop=0.25, dropout=0.1, attention_dropout=0)
    config.use_dropout, config.dropout_layers, config.drop_path_rate = True, 4, 0.2
    config.extra = {"attn_drop": 0, "drop_rate": 0.1, "depth": 0.5}
    override_dropouts(config, 0.4)
    assert (config.dropout, config.attention_dropout) == (0.4, 0.4)
    assert (config.layerdrop, config.drop_path_rate) == (0.25, 0.2)
    assert (config.use_dropout, config.dropout_layers) == (True, 4)
    assert config.extra == {"attn_drop": 0.4, "drop_rate": 0.4, "depth": 0.5}


def test_dropout_of_a_backbone_without_any_is_refused(tmp_path: Path) -> None:
    config = transformers.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1)
    config.save_pretrained(tmp_path)
    asked = ModelRecipe(path=str(tmp_path), dropout=0.1)
    with pytest.raises(RecipeError, match=r"model.dropout = 0.1; expected null or 0, .* mamba"):
        load_config(asked, str(tmp_path))
    load_config(ModelRecipe(path=str(tmp_path), dropout=0.0), str(tmp_path))
