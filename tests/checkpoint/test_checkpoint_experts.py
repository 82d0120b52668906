"""Adapters on experts whose matrices are stacked in one parameter: merged as peft merges them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.support import corpus, tiny
from tests.support.ranks import run_ranks
from tests.support.sessions import run_of, run_session
from trainer.distributed.group import Ranks
from trainer.errors import RecipeError
from trainer.export.adapter import merged_tensors
from trainer.model.adapters import add_lora
from trainer.recipe.schema import LoraRecipe

TEXTS = ["w3", "w4 w5 w6", " ".join(f"w{i}" for i in range(40))]
LORA = "model.lora={{rank: 4, alpha: 8}}"
ALONE = Ranks(rank=0, world_size=1, device=torch.device("cpu"))


def moe_config():
    """Two layers of four experts, two of which take each token."""
    from transformers import Qwen3MoeConfig

    sizes = tiny.qwen3_config(num_hidden_layers=2, eos_token_id=2, pad_token_id=0).to_dict()
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim",
            "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
            "initializer_range", "eos_token_id", "pad_token_id")  # fmt: skip
    return Qwen3MoeConfig(**{key: sizes[key] for key in kept}, moe_intermediate_size=16,
                          num_experts=4, num_experts_per_tok=2)  # fmt: skip


def adapted(dtype: torch.dtype, *, rslora: bool = False):
    """A model with adapters that change something."""
    from transformers import AutoModel

    torch.manual_seed(0)
    backbone = AutoModel.from_config(moe_config()).to(dtype)
    model = add_lora(backbone, LoraRecipe(rank=4, alpha=8.0, rslora=rslora))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return model


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_and_router_have_the_bits_that_peft_gives(dtype: torch.dtype, rslora: bool) -> None:
    model = adapted(dtype, rslora=rslora)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    merged = {name: one.clone() for name, one in merged_tensors(model, ALONE)}
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    base = {name: one.clone() for name, one in adapted(dtype).unload().state_dict().items()}
    wanted = model.merge_and_unload().state_dict()
    assert merged.keys() == wanted.keys()
    in_stacks = [name for name in wanted if ".mlp." in name]
    assert {name.split("mlp.")[1] for name in in_stacks} == {
        "experts.gate_up_proj", "experts.down_proj", "gate.weight",
    }  # fmt: skip
    for name in in_stacks:
        assert torch.equal(merged[name], wanted[name]), name
        assert not torch.equal(merged[name], base[name]), name
    for name in wanted.keys() - set(in_stacks):
        # summed in float64 here, in the weight's dtype by peft: a unit in the last place of the sum
        torch.testing.assert_close(merged[name], wanted[name], rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize("setting", ["dropout", "dora"])
def test_what_peft_has_not_for_experts_is_refused(setting: str) -> None:
    from transformers import AutoModel

    lora = {"dropout": LoraRecipe(dropout=0.1), "dora": LoraRecipe(dora=True)}[setting]
    with pytest.raises(
        RecipeError, match=r"model.lora = .*; expected .*ParamWrapper.* does not wo"
    ):
        add_lora(AutoModel.from_config(moe_config()), lora)


def trained(rank: int, world_size: int, folder: Path) -> Tensor:
    """A run of two steps that exports both ways; then, as after a failed export, the adapter."""
    from trainer.engine.embed import embed_texts

    run = (LORA, "train.max_steps=2", "checkpoint.every_steps=1", "train.learning_rate=3e-2")
    opened = run_of(folder, "run", *run, "checkpoint.export=both")
    run_session(opened, resume=False)
    session = opened.session
    vectors = embed_texts(
        TEXTS,
        instruction="w1 w2 ",
        max_tokens=16,
        encoder=session.encoder,
        grad_cache=session.built.grad_cache,
        ranks=session.ranks,
        chunk_tokens=64,
    )
    session.built.engine.destroy()
    opened = run_of(folder, "run", *run, "checkpoint.export=adapter")
    # what a failed export leaves: all checkpoints, no model
    (folder / "run" / "model").rename(folder / "both")
    run_session(opened, resume=True)
    return vectors.cpu()


@pytest.mark.slow
@pytest.mark.dist
def test_both_exports_embed_as_the_trainer(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModel, AutoTokenizer

    corpus.make_workspace(tmp_path)
    for file in (tmp_path / "model").iterdir():
        file.unlink()
    tiny.save_model(moe_config(), tmp_path / "model")
    corpus.save_tokenizer(tmp_path / "model")
    (wanted,) = run_ranks(trained, 1, tmp_path, timeout_sec=400)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "both")
    base = AutoModel.from_pretrained(tmp_path / "model")
    models = {
        "merged": AutoModel.from_pretrained(tmp_path / "both"),
        "adapter": PeftModel.from_pretrained(base, tmp_path / "run" / "model"),
    }
    for name, model in models.items():
        ids = [tokenizer(f"w1 w2 {text}", truncation=True).input_ids for text in TEXTS]
        got = [model.eval()(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in ids]
        vectors = nn.functional.normalize(torch.stack(got)).detach()
        # float32: other kernels, and one rounding of merged weights apart
        assert (vectors - wanted).abs().max() < 1e-5, name
    plain = AutoModel.from_pretrained(tmp_path / "model")
    assert not torch.equal(
        plain.layers[0].mlp.experts.down_proj, models["merged"].layers[0].mlp.experts.down_proj
    )
