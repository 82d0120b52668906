"""What a merge takes besides safetensors and LoRA: the result is peft's, or naive arithmetic's."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig

from tests.engine.test_engine_adapters import gpt2_config
from tests.support import tiny
from trainer.checkpoint.open import open_checkpoint
from trainer.checkpoint.tensors import read_whole
from trainer.errors import CheckpointError
from trainer.merge import MergeSettings, merge_checkpoints

SUM = MergeSettings(method="task_arithmetic", memory_budget_bytes=None)
IDS = torch.arange(1, 13).view(2, 6)


def biased_config() -> LlamaConfig:
    """A decoder whose linear modules all have biases."""
    return LlamaConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_bias=True,
        mlp_bias=True,
    )


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    torch.manual_seed(1)
    for name, config in (("llama", biased_config()), ("gpt2", gpt2_config())):
        model = AutoModel.from_config(config)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(folder / name)
    return folder


def lora(**options: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**({"r": 3, "lora_alpha": 6, "target_modules": ["q_proj"]} | options))


def ia3(**options: Any) -> Any:
    from peft import IA3Config

    return IA3Config(**options)


def tokens(**options: Any) -> Any:
    from peft import TrainableTokensConfig

    return TrainableTokensConfig(**options)


KINDS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "biases of all": ("llama", lora, {"bias": "all"}),
    "biases of the adapted": ("llama", lora, {"bias": "lora_only"}),
    "biases of B": ("llama", lora, {"lora_bias": True, "use_rslora": True}),
    "tokens beside": ("llama", lora, {"trainable_token_indices": [3, 96, 0]}),
    "tokens by module": (
        "llama",
        lora,
        {"trainable_token_indices": {"embed_tokens": [5, 1]}},
    ),
    "tokens alone": (
        "llama",
        tokens,
        {"target_modules": ["embed_tokens"], "token_indices": [7, 2]},
    ),
    "ia3": (
        "llama",
        ia3,
        {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    ),
    "ia3 of gpt2": (
        "gpt2",
        ia3,
        {
            "target_modules": ["c_attn", "mlp.c_proj"],
            "feedforward_modules": ["mlp.c_proj"],
            "fan_in_fan_out": True,
        },
    ),
    "gpt2": ("gpt2", lora, {"target_modules": ["attn.c_proj", "c_fc"], "fan_in_fan_out": True}),
    "orthogonal start": ("llama", lora, {"r": 4, "init_lora_weights": "orthogonal"}),
    "embedding": ("llama", lora, {"target_modules": ["embed_tokens"]}),
    "dora of gpt2": (
        "gpt2",
        lora,
        {"target_modules": ["attn.c_proj", "c_fc"], "fan_in_fan_out": True, "use_dora": True},
    ),
    "dora of embeddings": (
        "llama",
        lora,
        {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
    ),
}  # fmt: skip


def save_adapter(base: Path, folder: Path, config: Any, model: Any = None) -> dict[str, Tensor]:
    """An adapter away from its start; gives the weights that peft merges it to, in float64."""
    from peft import get_peft_model

    torch.manual_seed(3)
    whole = AutoModel.from_pretrained(base, dtype=torch.float32) if model is None else model
    model = get_peft_model(whole, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(str(folder))
    return dict(model.double().merge_and_unload().state_dict())


def assert_merged(output: Path, wanted: dict[str, Tensor]) -> None:
    merged = load_file(output / "model.safetensors")
    assert merged.keys() == wanted.keys()
    for name, value in wanted.items():
        # one rounding to float32
        torch.testing.assert_close(merged[name].double(), value, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_any_kind_merges_as_peft_merges_it(
    bases: Path, tmp_path: Path, kind: str
) -> None:
    base, make, options = KINDS[kind]
    wanted = save_adapter(bases / base, tmp_path / "adapter", make(**options))
    start = load_file(bases / base / "model.safetensors")
    assert any(not torch.equal(value.float(), start[name]) for name, value in wanted.items())
    merge_checkpoints(bases / base, [tmp_path / "adapter"], tmp_path / "merged", SUM)
    assert_merged(tmp_path / "merged", wanted)


def test_two_kinds_of_adapters_merge_as_their_changes_are_weighted(
    bases: Path, tmp_path: Path
) -> None:
    base = load_file(bases / "llama" / "model.safetensors")
    kinds = ("biases of all", "ia3", "tokens alone")
    tuned = []
    for number, kind in enumerate(kinds):
        _, make, options = KINDS[kind]
        tuned.append(save_adapter(bases / "llama", tmp_path / str(number), make(**options)))
    settings = MergeSettings(
        method="task_arithmetic", weights=(0.5, -0.25, 2.0), memory_budget_bytes=None
    )
    folders = [tmp_path / str(number) for number in range(len(kinds))]
    merge_checkpoints(bases / "llama", folders, tmp_path / "merged", settings)
    wanted = {
        name: value.double()
        + sum(
            weight * (one[name] - value.double())
            for weight, one in zip(settings.weights or (), tuned, strict=True)
        )
        for name, value in base.items()
    }
    assert_merged(tmp_path / "merged", wanted)


SPOILED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a token twice": ("tokens beside", {"trainable_token_indices": [3, 3, 0]},
                      r"trainable_token_indices = \[3, 3, 0\]; expected numbers of tokens, each"),
    "a token beyond": ("tokens beside", {"trainable_token_indices": [3, 97, 0]},
                       r"embed_tokens = token 97; expected one below 97"),
    "too few tokens": ("tokens beside", {"trainable_token_indices": [3]},
                       r"trained tokens of shape \(3, 32\); expected a row of .* for each of 1"),
    "another kind": ("ia3", {"peft_type": "LOHA"},
                     r"peft_type = 'LOHA'; expected LORA, with or without DoRA, IA3 or TRAINABLE"),
    "another base": ("gpt2", {"init_lora_weights": "loftq"},
                     r"init_lora_weights = 'loftq'; expected true, false, gaussian, orthogonal"),
    "some tokens": ("gpt2", {"alora_invocation_tokens": [5, 6]},
                    r"alora_invocation_tokens = \[5, 6\]; expected LoRA or DoRA that changes each"),
    "layers twice": ("gpt2", {"layer_replication": [[0, 1], [0, 1]]},
                     r"layer_replication = .*; expected LoRA or DoRA that changes each weight"),
    "no alpha": ("gpt2", {"lora_alpha": None}, r"lora_alpha = None; expected a finite number"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED)
def test_what_cannot_be_merged_is_refused_with_its_reason(
    bases: Path, tmp_path: Path, case: str
) -> None:
    kind, changes, message = SPOILED[case]
    base, make, options = KINDS[kind]
    save_adapter(bases / base, tmp_path / "adapter", make(**options))
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(CheckpointError, match=message):
        merge_checkpoints(bases / base, [tmp_path / "adapter"], tmp_path / "merged", SUM)
    assert not (tmp_path / "merged").exists()


def test_tokens_that_a_tied_head_repeats_are_merged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny.qwen3_config(num_hidden_layers=1, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    options = {"token_indices": [7, 2], "task_type": "CAUSAL_LM"}
    make = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    wanted = save_adapter(tmp_path / "base", tmp_path / "adapter", tokens(**options), make)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    rows = load_file(file)
    head = "base_model.model.lm_head.trainable_tokens_delta"
    assert len(rows) == 2
    assert head in rows
    merge_checkpoints(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "merged", SUM)
    assert not caplog.records
    del wanted["lm_head.weight"]
    assert_merged(tmp_path / "merged", wanted)
    # others than those of the embeddings are lost, which is said; alone they have no place
    save_file(rows | {head: rows[head] + 1}, file)
    with caplog.at_level(logging.WARNING, "trainer"):
        merge_checkpoints(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "again", SUM)
    assert "lm_head.weight was trained and is left out" in caplog.text
    assert_merged(tmp_path / "again", wanted)
    save_file({head: rows[head]}, file)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight = not in .*no head but its embed"):
        merge_checkpoints(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "none", SUM)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2", "olora"])
def test_an_adapter_that_changed_its_base_is_merged_once_it_is_converted(
    bases: Path, tmp_path: Path, start: str
) -> None:
    from peft import get_peft_model

    torch.manual_seed(4)
    model: Any = get_peft_model(
        AutoModel.from_pretrained(bases / "llama", dtype=torch.float32),
        lora(init_lora_weights=start),
    )
    # peft looks for the start of the adapter there
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(str(tmp_path / "start"))
    model.peft_config["default"].init_lora_weights = start
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(str(tmp_path / "raw"))
    model.save_pretrained(
        str(tmp_path / "converted"),
        path_initial_model_for_weight_conversion=str(tmp_path / "start"),
    )
    with pytest.raises(CheckpointError, match=rf"init_lora_weights = '{start}'; expected true"):
        merge_checkpoints(bases / "llama", [tmp_path / "raw"], tmp_path / "merged", SUM)
    assert not (tmp_path / "merged").exists()
    merge_checkpoints(bases / "llama", [tmp_path / "converted"], tmp_path / "merged", SUM)
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    for name, value in model.merge_and_unload().state_dict().items():
        # peft takes the start out of the base in float32, and puts it back
        torch.testing.assert_close(merged[name], value, atol=1e-5, rtol=1e-5)


def test_a_bias_of_b_needs_a_bias_in_the_base(tmp_path: Path) -> None:
    base = tiny.save_model(tiny.qwen3_config(), tmp_path / "base")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "lora_bias": True}
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    module = "base_model.model.layers.0.self_attn.q_proj"
    state = {f"{module}.lora_A.weight": torch.ones(1, 32), f"{module}.lora_B.bias": torch.ones(32),
             f"{module}.lora_B.weight": torch.ones(32, 1)}  # fmt: skip
    save_file(state, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"a bias of lora_B; expected a bias of its size in"):
        merge_checkpoints(base, [tmp_path / "adapter"], tmp_path / "merged", SUM)


def save_pickled(folder: Path, state: dict[str, Tensor], *, shards: int = 1) -> Path:
    """A `.bin` folder as transformers wrote it for years."""
    folder.mkdir()
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    names = list(state)
    weight_map = {name: f"pytorch_model-{i % shards}.bin" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        torch.save({n: state[n] for n in names if weight_map[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("shards", [1, 3])
def test_bin_folders_merge_as_safetensors_do(bases: Path, tmp_path: Path, shards: int) -> None:
    start = load_file(bases / "llama" / "model.safetensors")
    tuned = {name: value + 0.125 for name, value in start.items()}
    config = (bases / "llama" / "config.json").read_bytes()
    for name, state in (("base", start), ("tuned", tuned)):
        save_pickled(tmp_path / name, state, shards=shards)
        (tmp_path / name / "config.json").write_bytes(config)
    merge_checkpoints(tmp_path / "base", [tmp_path / "tuned"], tmp_path / "merged", SUM)
    assert_merged(tmp_path / "merged", {name: value.double() for name, value in tuned.items()})


def test_an_adapter_in_a_bin_file_merges_as_its_safetensors_do(bases: Path, tmp_path: Path) -> None:
    wanted = save_adapter(bases / "llama", tmp_path / "adapter", lora())
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    merge_checkpoints(bases / "llama", [tmp_path / "adapter"], tmp_path / "merged", SUM)
    assert_merged(tmp_path / "merged", wanted)


def test_views_and_parameters_of_a_bin_file_are_read_as_they_are(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    state = {"a.weight": whole.t(), "b.weight": nn.Parameter(whole), "c.weight": whole[1:]}
    opened = open_checkpoint(save_pickled(tmp_path / "model", state))
    for name, value in state.items():
        assert np.array_equal(read_whole(opened.plain[name]), value.detach().double())


class Harm:
    """Pickled as a call."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("harmed"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": Harm()}, r"pickled names = .*pathlib.*Nothing of the file was run"),
        ({"a": {"b": torch.ones(2)}}, r"a = dict; expected dense tensors by name"),
        ({"a": 1}, r"a = int; expected dense tensors by name"),
        ({"a": torch.ones(2).to_sparse()}, r"a = torch\.sparse_coo; expected dense|pickled names"),
        ({"a.weight": torch.ones(2).to(torch.float8_e4m3fn)}, r"dtype = float8_e4m3fn \(1 of 1"),
        ({"a.weight": torch.ones(2).to(torch.int8)}, r"dtype = I8 \(1 of 1 tensors\)"),
        ([torch.ones(2)], r"content = list; expected a dict"),
    ],
)
def test_a_bin_file_of_anything_else_is_refused_unrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)
    assert not (tmp_path / "harmed").exists()


def test_an_old_pickle_is_refused(tmp_path: Path) -> None:
    state = {"a": torch.ones(2)}
    file = tmp_path / "pytorch_model.bin"
    torch.save(state, file, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: content = unreadable"):
        open_checkpoint(tmp_path)


def test_float8_is_refused_by_its_name(bases: Path, tmp_path: Path) -> None:
    state = load_file(bases / "llama" / "model.safetensors")
    name = "layers.0.self_attn.q_proj.weight"
    scaled = state | {
        name: state[name].to(torch.float8_e4m3fn),
        f"{name}_scale_inv": torch.ones(1, 1),
    }
    save_file(scaled, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"dtype = F8_E4M3 \(1 of \d+ tensors\), the first"):
        merge_checkpoints(bases / "llama", [tmp_path], tmp_path / "merged", SUM)


def test_a_trained_head_that_the_base_ties_is_not_dropped_silently(
    bases: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = load_file(bases / "llama" / "model.safetensors")
    config = (bases / "llama" / "config.json").read_bytes()
    table = start["embed_tokens.weight"]
    for name, head in (("copy", table), ("trained", table + 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_bytes(config)
        state = {f"model.{one}": value for one, value in start.items()}
        save_file(state | {"lm_head.weight": head.clone()}, tmp_path / name / "model.safetensors")
        with caplog.at_level(logging.WARNING, "trainer"):
            caplog.clear()
            merge_checkpoints(bases / "llama", [tmp_path / name], tmp_path / f"{name} merged", SUM)
        said = [
            one.message for one in caplog.records if "lm_head.weight was trained" in one.message
        ]
        assert len(said) == (name == "trained")
    adapter = tmp_path / "adapter"
    save_adapter(bases / "llama", adapter, lora())
    file = adapter / "adapter_model.safetensors"
    moved = {key.replace("layers.0.self_attn.q_proj", "lm_head"): value
             for key, value in load_file(file).items() if "layers.0" in key}  # fmt: skip
    save_file(moved, file)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight = not in the base \(1 of its 1 ad"):
        merge_checkpoints(bases / "llama", [adapter], tmp_path / "none", SUM)
