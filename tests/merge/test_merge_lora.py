"""Adapters merged as one adapter and as a model: the same vectors, those of the dense merge."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support import tiny
from tests.support.merge_truth import naive_merge
from tools import delta_merge
from trainer.merge import MergeSettings
from trainer.merge.depth import at_depth

ADAPTERS: dict[str, dict[str, Any]] = {
    "a": {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]},
    "b": {"r": 4, "lora_alpha": 4, "target_modules": "all-linear", "use_rslora": True},
    "c": {
        "r": 2,
        "lora_alpha": 5,
        "target_modules": ["q_proj", "v_proj"],
        "alpha_pattern": {"layers.1.self_attn.v_proj": 9},
    },
}
IDS = torch.arange(1, 13).view(2, 6)


def save_adapter(base: Path, folder: Path, seed: int, **options: Any) -> None:
    """A peft adapter with both factors away from zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    torch.manual_seed(seed)
    model = get_peft_model(AutoModel.from_pretrained(base), LoraConfig(**options))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.2 * seed)
    model.save_pretrained(folder)


def changes(folder: Path) -> dict[str, Tensor]:
    """Scale * B A of each adapted weight in float64, as peft forms it."""
    from peft import PeftModel
    from transformers import AutoModel

    model = PeftModel.from_pretrained(AutoModel.from_pretrained(folder.parent / "base"), folder)
    found = {}
    for name, module in model.get_base_model().double().named_modules():
        if hasattr(module, "get_delta_weight"):
            found[f"{name}.weight"] = module.get_delta_weight("default").detach()
    return found


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("room")
    tiny.save_model(tiny.qwen3_config(hidden_size=64, head_dim=16), folder / "base")
    for seed, (name, options) in enumerate(ADAPTERS.items(), start=1):
        save_adapter(folder / "base", folder / name, seed, **options)
    return folder


def merge(room: Path, output: str, *options: str, names: str = "abc") -> int:
    checkpoints = [str(room / name) for name in names]
    arguments = ["--base", str(room / "base"), "--checkpoints", *checkpoints]
    return delta_merge.main([*arguments, "--output", str(room / output), *options])


def states(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval().double()(input_ids=IDS).last_hidden_state


METHODS = {
    "delta": MergeSettings(),
    "rows": MergeSettings(granularity="row", alpha=2.0, lambda_=0.5),
    "uniform": MergeSettings(method="uniform"),
    "by depth": MergeSettings(by_depth=(1.5, 0.5)),
    "task_arithmetic": MergeSettings(method="task_arithmetic", weights=(0.7, -0.3, 0.5)),
}
OPTIONS = {
    "delta": (),
    "rows": ("--granularity", "row", "--alpha", "2", "--lambda", "0.5"),
    "uniform": ("--method", "uniform"),
    "by depth": ("--by-depth", "1.5", "0.5"),
    "task_arithmetic": ("--method", "task_arithmetic", "--weights", "0.7", "-0.3", "0.5"),
}


@pytest.mark.parametrize("method", METHODS)
def test_adapter_and_model_equal_the_dense_merge(room: Path, method: str) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    assert merge(room, f"{method} adapter", "--as", "adapter", *OPTIONS[method]) == 0
    assert merge(room, f"{method} model", *OPTIONS[method]) == 0
    dense = AutoModel.from_pretrained(room / "base").double()
    own = [changes(room / name) for name in ADAPTERS]
    norms = json.loads((room / f"{method} adapter" / "merge.json").read_text())["tensors"]
    with torch.no_grad():
        for name, parameter in dense.named_parameters():
            still = torch.zeros_like(parameter)
            deltas = [one.get(name, still) for one in own]
            if any(name in one for one in own):
                tuned = [parameter + delta for delta in deltas]
                settings = at_depth(METHODS[method], name, dense.config.num_hidden_layers)
                parameter.copy_(naive_merge(parameter.clone(), tuned, settings))
                wanted = [float(delta.norm()) for delta in deltas]
                assert norms[name]["norms"] == pytest.approx(wanted, rel=1e-6)
    as_model = AutoModel.from_pretrained(room / f"{method} model")
    base = AutoModel.from_pretrained(room / "base")
    as_adapter = PeftModel.from_pretrained(base, room / f"{method} adapter")
    # both are rounded to float32 once, as weights or as factors
    scale = states(dense).abs().max()
    assert (states(as_model) - states(dense)).abs().max() < 1e-5 * scale
    assert (states(as_adapter) - states(dense)).abs().max() < 1e-5 * scale


def test_merged_adapter_loads_by_its_folder_alone(room: Path) -> None:
    from transformers import AutoModel

    assert merge(room, "alone", "--as", "adapter", "--hash") == 0
    weights = (room / "alone" / "adapter_model.safetensors").read_bytes()
    hashes = json.loads((room / "alone" / "merge.json").read_text())["output_sha256"]
    assert hashes == {"adapter_model.safetensors": hashlib.sha256(weights).hexdigest()}
    config = json.loads((room / "alone" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 3 + 4 + 2
    merged = AutoModel.from_pretrained(room / "alone")
    assert merge(room, "alone model") == 0
    wanted = states(AutoModel.from_pretrained(room / "alone model"))
    assert (states(merged) - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert merge(room, "again", "--as", "adapter", names="a") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "ties"), "method = ties; expected delta per tensor or row"),
        (("--granularity", "element"), "granularity = element; expected delta per tensor"),
    ],
)
def test_what_is_not_of_low_rank_is_refused(
    room: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert merge(room, "refused", "--as", "adapter", *options) == 2
    assert message in capsys.readouterr().err
    assert not (room / "refused").exists()


@pytest.mark.parametrize("flag", ["--dry-run", "--resume"])
def test_flags_of_long_merges_are_refused(
    room: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        merge(room, "refused", "--as", "adapter", flag)
    assert "are for --as model" in capsys.readouterr().err


KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"target_modules": ["q_proj"], "use_dora": True}, "q_proj.weight = adapted by DoRA"),
    "embedding": ({"target_modules": ["embed_tokens"]}, "= an adapted embedding"),
    "saved": ({"target_modules": ["q_proj"], "modules_to_save": ["norm"]}, "= trained whole"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_adapters_are_refused(
    room: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    options, message = KINDS[kind]
    save_adapter(room / "base", room / kind, 1, **options)
    if kind == "saved":
        path = room / kind / "adapter_model.safetensors"
        moved = {n: t + (0 if "lora" in n else 1) for n, t in load_file(path).items()}
        save_file(moved, path, {"format": "pt"})
    checkpoints = [str(room / "a"), str(room / kind)]
    arguments = ["--base", str(room / "base"), "--output", str(room / "none"), "--as", "adapter"]
    assert delta_merge.main([*arguments, "--checkpoints", *checkpoints]) == 2
    assert message in capsys.readouterr().err
    assert not (room / "none").exists()


def test_full_checkpoints_are_refused(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--base", str(room / "base"), "--output", str(room / "none"), "--as", "adapter"]
    assert delta_merge.main([*arguments, "--checkpoints", str(room / "base")]) == 2
    assert "adapters = none; expected checkpoints of LoRA runs" in capsys.readouterr().err


def test_exported_adapter_of_another_base_is_refused(
    room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert merge(room, "known", "--as", "adapter") == 0
    torch.manual_seed(1)
    weights = load_file(room / "base" / "model.safetensors")
    (room / "other").mkdir()
    (room / "other" / "config.json").write_bytes((room / "base" / "config.json").read_bytes())
    weights["norm.weight"][0] += 1
    save_file(weights, room / "other" / "model.safetensors", {"format": "pt"})
    arguments = ["--checkpoints", str(room / "known"), "--output", str(room / "none")]
    assert delta_merge.main(["--base", str(room / "other"), *arguments]) == 2
    assert "base = trained from other weights" in capsys.readouterr().err
