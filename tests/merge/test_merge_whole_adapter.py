"""An adapter whose file lacks a module that its config names is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import tiny
from tools import delta_merge
from trainer.checkpoint.open import open_checkpoint
from trainer.merge.whole_adapter import named_ones, questions

FILE = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny.save_model(tiny.qwen3_config(), folder)
    return folder


def save(base: Path, folder: Path, *, head: bool = False, **options: Any) -> Path:
    """A peft folder of random values."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel, AutoModelForCausalLM

    kind: Any = AutoModelForCausalLM if head else AutoModel
    torch.manual_seed(0)
    config = LoraConfig(r=2, init_lora_weights=False, **options)
    get_peft_model(kind.from_pretrained(base), config).save_pretrained(folder)
    return folder


def lose(folder: Path, pattern: str) -> None:
    tensors = load_file(folder / FILE)
    kept = {name: one for name, one in tensors.items() if not re.search(pattern, name)}
    assert len(kept) < len(tensors)
    save_file(kept, folder / FILE, metadata={"format": "pt"})


def lost(base: Path, folder: Path, prefix: str = "") -> list[str]:
    """What the file lacks, by the questions that a process of its own answers elsewhere."""
    modules = [
        name.removesuffix(".weight")
        for name, one in open_checkpoint(base).plain.items()
        if len(one.shape) == 2
    ]
    adapted = {name.removeprefix(prefix) for name in open_checkpoint(folder).adapters}
    return named_ones(str(folder), str(base), questions(adapted, modules, prefix))


CHOSEN = {"layers_to_transform": [0, 2], "layers_pattern": "layers"}
LOST: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "a layer": (r"layers\.1\.", {"target_modules": ["q_proj", "v_proj"]},
                ["layers.1.self_attn.q_proj", "layers.1.self_attn.v_proj"]),
    "a kind": (r"v_proj", {"target_modules": ["q_proj", "v_proj"]},
               [f"layers.{i}.self_attn.v_proj" for i in range(4)]),
    "of all linear": (r"layers\.3\.mlp\.up", {"target_modules": "all-linear"},
                      ["layers.3.mlp.up_proj"]),
    "embedding": (r"embed_tokens", {"target_modules": ["q_proj", "embed_tokens"]},
                  ["embed_tokens"]),
    "by pattern": (r"layers\.2\.", {"target_modules": r"model\.layers\.[12]\.self_attn\.[qv]_proj",
                                    "head": True},
                   ["layers.2.self_attn.q_proj", "layers.2.self_attn.v_proj"]),
    "of chosen layers": (r"layers\.2\.", {"target_modules": ["q_proj"]} | CHOSEN,
                         ["layers.2.self_attn.q_proj"]),
}  # fmt: skip


@pytest.mark.parametrize("name", LOST)
def test_lost_modules_are_found(name: str, base: Path, tmp_path: Path) -> None:
    pattern, options, expected = LOST[name]
    folder = save(base, tmp_path / "adapter", **options)
    prefix = "model." if "head" in options else ""
    assert lost(base, folder, prefix) == []
    lose(folder, pattern)
    assert sorted(lost(base, folder, prefix)) == expected


WHOLE: dict[str, dict[str, Any]] = {
    "chosen layers": {"target_modules": ["q_proj"]} | CHOSEN,
    "but some": {"target_modules": ["q_proj", "v_proj"],
                 "exclude_modules": ["layers.1.self_attn.v_proj"]},
    "by pattern": {"target_modules": r".*\.[13]\.mlp\.(up|down)_proj"},
    "full names": {"target_modules": ["layers.0.self_attn.q_proj", "layers.3.mlp.up_proj"]},
    "with a head": {"target_modules": ["q_proj", "lm_head"], "head": True},
    "beside whole ones": {"target_modules": ["q_proj", "embed_tokens"],
                          "modules_to_save": ["layers.1.self_attn"]},
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_what_the_config_leaves_out_is_not_missed(name: str, base: Path, tmp_path: Path) -> None:
    folder = save(base, tmp_path / "adapter", **WHOLE[name])
    if name == "with a head":
        lose(folder, "lm_head")  # an embedder has none
    assert lost(base, folder, "model." if name == "with a head" else "") == []


def test_layers_that_the_model_has_not_are_not_missed(tmp_path: Path) -> None:
    # bases on disk may have layers for the prediction of further tokens
    own = tmp_path / "base"
    tiny.save_model(tiny.qwen3_config(num_hidden_layers=3), own)
    folder = save(own, tmp_path / "adapter", target_modules=["q_proj"])
    tensors = load_file(own / "model.safetensors")
    more = {
        name.replace("layers.2.", "layers.3."): one.clone()
        for name, one in tensors.items()
        if "layers.2." in name
    }
    save_file(tensors | more, own / "model.safetensors", metadata={"format": "pt"})
    assert lost(own, folder) == []


@pytest.mark.parametrize(
    ("saved", "absent", "told"),
    [
        (["norm"], r"model\.norm\.", "norm.weight = absent (1 such tensors)"),
        (["mlp"], r"layers\.2\.mlp\.up", "layers.2.mlp.up_proj.weight = absent (1 such tensors)"),
        (["mlp", "norm"], r"layers\.1\.mlp", "(3 such tensors)"),
    ],
)
def test_a_module_that_was_trained_in_full_is_not_taken_from_the_base(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], saved: list[str],
    absent: str, told: str,
) -> None:  # fmt: skip
    folder = save(base, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=saved)
    arguments = ["--base", str(base), "--checkpoints", str(folder)]
    assert delta_merge.main([*arguments, "--output", str(tmp_path / "whole")]) == 0
    lose(folder, absent)
    assert delta_merge.main([*arguments, "--output", str(tmp_path / "merged")]) == 2
    message = capsys.readouterr().err
    assert told in message
    assert "modules_to_save" in message
    assert not (tmp_path / "merged").exists()


@pytest.mark.slow
@pytest.mark.parametrize("result", ["model", "adapter"])
def test_the_command_names_what_is_absent(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], result: str
) -> None:
    folder = save(base, tmp_path / "adapter", target_modules=["q_proj"])
    arguments = ["--base", str(base), "--checkpoints", str(folder), "--as", result]
    arguments += ["--output", str(tmp_path / "merged")]
    whole = load_file(folder / FILE)
    lose(folder, r"layers\.3")
    assert delta_merge.main(arguments) == 2
    assert "layers.3.self_attn.q_proj = absent (1 such modules" in capsys.readouterr().err
    for part in "AB":
        save_file(whole, folder / FILE, metadata={"format": "pt"})
        lose(folder, rf"lora_{part}")
        assert delta_merge.main(arguments) == 2
        assert "expected lora_A and lora_B" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()
