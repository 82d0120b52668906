"""Names: what is not found under the base's or the architecture's is refused, with the prefix."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.support import tiny
from tools.delta_merge import main
from trainer.checkpoint.names import likely_prefix
from trainer.merge.expected import looks_odd

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
LOST = "layers.1.mlp.down_proj.weight"


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"encoder.net.{name}": one for name, one in tensors.items()}


def lacking(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: one for name, one in tensors.items() if name != LOST}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a tuned copy, both renamed or lacking a tensor, and adapters."""
    folder = tmp_path_factory.mktemp("names")
    tiny.save_model(tiny.qwen3_config(), folder / "base")
    tensors = load_file(folder / "base" / "model.safetensors")
    for name, shift in (("base", 0.0), ("tuned", 0.125)):
        for kind, change in (("", dict), ("renamed ", renamed), ("lacking ", lacking)):
            place = folder / f"{kind}{name}"
            if place != folder / "base":
                shutil.copytree(folder / "base", place)
            changed = change({key: one + shift for key, one in tensors.items()})
            save_file(changed, place / "model.safetensors", {"format": "pt"})
    write_adapters(folder)
    return folder


def write_adapters(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    backbone = AutoModel.from_pretrained(folder / "base")
    model = get_peft_model(backbone, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder / "adapter")
    shutil.copytree(folder / "adapter", folder / "renamed adapter")
    file = folder / "renamed adapter" / "adapter_model.safetensors"
    tensors = {name.replace("model.layers", "model.encoder.net.layers"): one
               for name, one in load_file(file).items()}  # fmt: skip
    save_file(tensors, file, {"format": "pt"})


REFUSED = {
    ("base", "renamed tuned"): (
        r"renamed tuned: encoder.net.embed_tokens.weight, .* and 41 more = not in the base \(46 of "
        r"its 46 tensors\), which has 46 of 46 that it lacks: embed_tokens.weight, .*; expected the"
        r" names of the base .*/base. Save .*/renamed tuned without the prefix encoder.net. that"
    ),
    ("renamed base", "tuned"): (
        r"tuned: embed_tokens.weight, .* = not in the base \(46 of its 46 tensors\), which has 46 "
        r"of 46 that it lacks: encoder.net.embed.*Save .*/renamed base without the prefix encoder"
        r".net. that it puts before its names"
    ),
    ("base", "lacking tuned"): (
        rf"lacking tuned: {LOST} = missing \(1 of the base's 46 tensors\); expected every tensor"
    ),
    ("lacking base", "tuned"): (
        rf"tuned: {LOST} = not in the base \(1 of its 46 tensors\); expected .* or save that base w"
    ),
    ("renamed base", "renamed tuned"): (
        r"renamed base: embed_tokens.weight, .* = missing \(46 of the 46 tensors of its config.json"
        r"; the first that it has is encoder.net.embed_tokens.weight\); expected all of them. Save "
        r"it without the prefix encoder.net. that"
    ),
    ("lacking base", "lacking tuned"): (
        rf"lacking base: {LOST} = missing \(1 of the 46 tensors of its config.json; .*Save it whole"
    ),
    ("base", "renamed adapter"): (
        r"renamed adapter: encoder.net.layers.0.self_attn.q_proj.weight, .* = not in the base \(8 "
        r"of its 8 adapted weights\); .* without the prefix encoder.net. that it puts before"
    ),
    ("renamed base", "adapter"): (
        r"adapter: layers.0.self_attn.q_proj.weight, .* = not in the base \(8 of its 8 adapted w.*"
        r"Save .*/renamed base without the prefix encoder.net. that it puts before its names"
    ),
    ("lacking base", "adapter"): rf"lacking base: {LOST} = missing",
}


CASES = [(*one, "model") for one in REFUSED]
CASES += [(*one, "adapter") for one in REFUSED if "adap" in one[1]]
ASKING = {
    ("lacking base", "lacking tuned", "model"),
    ("lacking base", "adapter", "adapter"),
    ("lacking base", "adapter", "model"),
}
"""These ask transformers, in a process of its own, for names that others ask for, too."""


@pytest.mark.parametrize(
    ("base", "checkpoint", "result"),
    [pytest.param(*one, marks=pytest.mark.slow) if one in ASKING else one for one in CASES],
)
def test_names_that_do_not_fit_are_refused(
    room: Path, base: str, checkpoint: str, result: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = ["--base", f"{room}/{base}", "--checkpoints", f"{room}/{checkpoint}"]
    assert main([*inputs, "--output", f"{room}/out", "--as", result]) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert re.search(REFUSED[base, checkpoint], told), told
    assert not (room / "out").exists()


@pytest.mark.parametrize("checkpoint", ["tuned", "adapter"])
def test_what_fits_is_merged(room: Path, tmp_path: Path, checkpoint: str) -> None:
    inputs = ["--base", f"{room}/base", "--checkpoints", f"{room}/{checkpoint}"]
    assert main([*inputs, "--output", f"{tmp_path}/out"]) == 0
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert merged.keys() == load_file(room / "base" / "model.safetensors").keys()


@pytest.mark.slow
def test_layers_that_the_architecture_makes_unlike_are_merged(tmp_path: Path) -> None:
    from transformers import AutoModel, Qwen3MoeConfig

    config = Qwen3MoeConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, moe_intermediate_size=16, num_experts=4,
        num_experts_per_tok=2, mlp_only_layers=[1],
    )  # fmt: skip
    for seed, name in enumerate(("base", "tuned")):
        torch.manual_seed(seed)
        AutoModel.from_config(config).save_pretrained(tmp_path / name)
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    assert looks_odd(tensors)
    inputs = ["--base", f"{tmp_path}/base", "--checkpoints", f"{tmp_path}/tuned"]
    assert main([*inputs, "--output", f"{tmp_path}/out"]) == 0
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == tensors.keys()


def test_usual_models_do_not_look_odd() -> None:
    from transformers import AutoModel, GPT2Config, OPTConfig

    configs = [
        tiny.qwen3_config(),
        tiny.bert_config(),
        GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=9),
        OPTConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, ffn_dim=8,
                  word_embed_proj_dim=8, vocab_size=9),
    ]  # fmt: skip
    for config in configs:
        with torch.device("meta"):
            names = AutoModel.from_config(config).state_dict()
        assert not looks_odd(names), type(config)
        assert looks_odd(renamed(names)), type(config)
        assert looks_odd(list(names)[:-9]), type(config)


def test_the_likely_prefix() -> None:
    wanted = ["layers.0.a.weight", "layers.0.b.weight", "norm.weight"]
    assert likely_prefix(wanted, [f"x.y.{name}" for name in wanted]) == "x.y."
    assert likely_prefix(wanted, ["x.norm.weight", "other", "more"]) == ""
    assert likely_prefix(wanted, wanted) == ""
    # an adapter's names are some of the base's
    assert likely_prefix(wanted[:1], [f"x.{name}" for name in wanted]) == "x."
    assert likely_prefix(["a.weight"], wanted) == ""
    assert likely_prefix([], wanted) == likely_prefix(wanted, []) == ""
