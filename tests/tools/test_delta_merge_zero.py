"""Merges of real DeepSpeed checkpoints and adapters against the naive computation in float64."""

import itertools
import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.support.merge_truth import assert_merged, units_apart
from tests.support.zero_checkpoints import SETS, make_checkpoint_set, tiny_config, write_base
from tools import delta_merge
from trainer.merge import MergeSettings

FULL = [spec.name for specs in SETS.values() for spec in specs if not spec.lora]
LORA = [spec.name for specs in SETS.values() for spec in specs if spec.lora]
SCALE = 7 / 3
"""alpha / rank of the adapters in the set."""


@pytest.fixture(scope="session")
def zero(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint_set(tmp_path_factory)


def read_base(zero: Path) -> dict[str, Tensor]:
    return load_file(zero / "base" / "model.safetensors")


@lru_cache(maxsize=32)
def whole_weights(zero: Path, name: str) -> dict[str, Tensor]:
    """All weights of a checkpoint in float64, adapters multiplied out, from the live engine."""
    truth = {key.removeprefix("backbone."): one.double() for key, one in
             torch.load(zero / name / "truth.pt").items()}  # fmt: skip
    if not any("lora_" in key for key in truth):
        return truth
    truth = {key.removeprefix("base_model.model."): one for key, one in truth.items()}
    weights = {key.replace(".base_layer", ""): one for key, one in truth.items()
               if "lora_" not in key}  # fmt: skip
    for key in [key for key in truth if ".lora_A." in key]:
        module = key.split(".lora_A.")[0]
        update = truth[f"{module}.lora_B.default.weight"] @ truth[key]
        weight = weights[f"{module}.weight"] + SCALE * update
        magnitude = truth.get(f"{module}.lora_magnitude_vector.default.weight")
        if magnitude is not None:
            weight = weight * (magnitude / weight.norm(dim=1))[:, None]
        weights[f"{module}.weight"] = weight
    return weights


def merge(zero: Path, names: list[str], output: Path, *options: str) -> dict[str, Tensor]:
    checkpoints = [str(zero / name) for name in names]
    arguments = ["--base", str(zero / "base"), "--checkpoints", *checkpoints]
    assert delta_merge.main([*arguments, "--output", str(output), *options]) == 0
    return load_file(output / "model.safetensors")


def check(zero: Path, names: list[str], merged: dict[str, Tensor], settings: MergeSettings) -> None:
    base = read_base(zero)
    assert set(merged) == set(base)
    for key, values in merged.items():
        tuned = [whole_weights(zero, name)[key] for name in names]
        assert_merged(values, base[key].double(), tuned, settings)


PRODUCT = list(
    itertools.product(
        ("delta", "uniform", "task_arithmetic", "ties"),
        ("tensor", "row", "element"),
        ("float32", "bfloat16"),
    )
)
FEW = {
    ("delta", "tensor", "bfloat16"),
    ("delta", "row", "float32"),
    ("uniform", "tensor", "float32"),
    ("task_arithmetic", "tensor", "bfloat16"),
    ("ties", "element", "float32"),
}
"""Every method, granularity and precision; test_merge_stream.py mixes them on plain tensors."""


@pytest.mark.dist
@pytest.mark.parametrize(
    ("method", "granularity", "dtype"),
    [one if one in FEW else pytest.param(*one, marks=pytest.mark.slow) for one in PRODUCT],
)
def test_all_worlds_stages_and_precisions_merge_exactly(
    zero: Path, tmp_path: Path, method: Any, granularity: Any, dtype: str
) -> None:
    options = ["--method", method, "--granularity", granularity, "--dtype", dtype,
               "--alpha", "1.5", "--lambda", "0.9"]  # fmt: skip
    names = [*FULL, *LORA]

    merged = merge(zero, names, tmp_path / "out", *options)

    settings = MergeSettings(method=method, granularity=granularity, alpha=1.5, lambda_=0.9)
    check(zero, names, merged, settings)


@pytest.mark.dist
@pytest.mark.parametrize("name", [*FULL, *LORA])
def test_one_checkpoint_alone_comes_out_bit_for_bit(zero: Path, tmp_path: Path, name: str) -> None:
    merged = merge(zero, [name], tmp_path / "out")

    for key, wanted in whole_weights(zero, name).items():
        if name in FULL:
            assert torch.equal(merged[key], wanted.float()), key
        else:
            # the same products in float64, maybe summed in another order
            assert units_apart(merged[key], wanted.float()).max() <= 1, key


@pytest.mark.dist
def test_alpha_zero_is_uniform_for_zero_checkpoints(zero: Path, tmp_path: Path) -> None:
    soup = merge(zero, FULL, tmp_path / "soup", "--alpha", "0")
    uniform = merge(zero, FULL, tmp_path / "uniform", "--method", "uniform")

    assert all(torch.equal(soup[key], uniform[key]) for key in uniform)


@pytest.mark.dist
def test_what_adapters_leave_alone_keeps_the_bases_bits(zero: Path, tmp_path: Path) -> None:
    merged = merge(zero, ["w2-z1-fp32-lora", "w2-z3-fp32-lora-only"], tmp_path / "out")

    base = read_base(zero)
    still = [key for key in base if "proj.weight" not in key]
    assert len(still) == 12
    assert all(torch.equal(merged[key], base[key]) for key in still)


@pytest.mark.dist
def test_planted_padding_enters_no_norm(zero: Path, tmp_path: Path) -> None:
    shutil.copytree(zero / "w2-z3-fp32", tmp_path / "run" / "checkpoints")
    last = tmp_path / "run/checkpoints/step-2/zero_pp_rank_1_mp_rank_00_optim_states.pt"
    states = torch.load(last, weights_only=False)
    shapes = torch.load(last.with_name(last.name.replace("optim", "model")))["param_shapes"]
    flats = states["optimizer_state_dict"]["fp32_flat_groups"]
    for flat, group in zip(flats, shapes, strict=True):
        offset = 0
        for shape in group.values():
            offset += -(-shape.numel() // 2)
            if shape.numel() % 2:
                flat.data[offset - 1] = 1e30
    torch.save(states, last)
    clean = merge(zero, ["w2-z3-fp32", "w3-z1-fp32"], tmp_path / "clean")

    arguments = ["--base", f"{zero}/base", "--output", f"{tmp_path}/planted"]
    names = [f"{tmp_path}/run", f"{zero}/w3-z1-fp32"]
    assert delta_merge.main([*arguments, "--checkpoints", *names]) == 0

    planted = load_file(tmp_path / "planted" / "model.safetensors")
    assert all(torch.equal(planted[key], clean[key]) for key in clean)
    reports = [json.loads((tmp_path / name / "merge.json").read_text()) for name in
               ("clean", "planted")]  # fmt: skip
    assert reports[0]["tensors"] == reports[1]["tensors"]


@pytest.mark.dist
def test_another_base_than_the_manifests_is_refused(
    zero: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer.checkpoint.open import base_fingerprint, open_checkpoint

    tag = tmp_path / "step-2"
    shutil.copytree(zero / "w2-z3-fp32" / "step-2", tag)
    files = {p.name: {"size": p.stat().st_size, "sha256": ""} for p in tag.glob("*.pt")}
    identity = {"fingerprint": base_fingerprint(open_checkpoint(zero / "base"))}
    (tag / "manifest.json").write_text(json.dumps({"files": files, "base": identity}))
    write_base(tmp_path / "other", seed=9)

    arguments = ["--checkpoints", str(tag), "--output", str(tmp_path / "out")]
    assert delta_merge.main(["--base", str(tmp_path / "other"), *arguments]) == 2
    assert "base = trained from other weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert delta_merge.main(["--base", str(zero / "base"), *arguments]) == 0


def adapter(base: Path, folder: Path, seed: int, **options: Any) -> dict[str, Tensor]:
    """Save a PEFT adapter; gives the weights that peft itself merges, float32."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    torch.manual_seed(seed)
    model = get_peft_model(AutoModel.from_pretrained(base), LoraConfig(r=3, **options))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.3)
    model.save_pretrained(folder)
    merged = model.merge_and_unload()
    return {name: one.detach().clone() for name, one in merged.state_dict().items()}


KINDS = {
    "plain": {"target_modules": "all-linear", "lora_alpha": 6},
    "rslora": {"target_modules": ["q_proj", "up_proj"], "lora_alpha": 5, "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "v_proj"],
        "lora_alpha": 5,
        "rank_pattern": {"v_proj": 2},
        "alpha_pattern": {"layers.1.self_attn.v_proj": 9},
    },
    "embedding": {"target_modules": ["embed_tokens", "o_proj"], "lora_alpha": 4},
    "saved modules": {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_peft_adapters_are_applied_as_peft_does(tmp_path: Path, kind: str) -> None:
    write_base(tmp_path / "base")
    wanted = adapter(tmp_path / "base", tmp_path / "adapter", 1, **KINDS[kind])

    merged = merge(tmp_path, ["adapter"], tmp_path / "out")

    assert set(merged) == set(wanted)
    for name, values in merged.items():
        # peft multiplies in float32
        torch.testing.assert_close(values, wanted[name], rtol=1e-5, atol=1e-6)


def test_adapters_of_transposed_layers_are_applied_as_peft_does(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=8, n_embd=12, n_layer=1, n_head=2)
    GPT2Model(config).save_pretrained(tmp_path / "base")
    options = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "lora_alpha": 4}
    wanted = adapter(tmp_path / "base", tmp_path / "adapter", 1, **options)

    merged = merge(tmp_path, ["adapter"], tmp_path / "out")

    for name, values in merged.items():
        # peft multiplies in float32
        torch.testing.assert_close(values, wanted[name], rtol=1e-5, atol=1e-6)


def test_adapters_on_a_base_with_a_head_fit_by_name(tmp_path: Path) -> None:
    from transformers import Qwen2ForCausalLM

    torch.manual_seed(0)
    config = tiny_config(tie_word_embeddings=False)
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "base")
    wanted = adapter(tmp_path / "base", tmp_path / "adapter", 1, **KINDS["plain"])

    merged = merge(tmp_path, ["adapter"], tmp_path / "out")

    kept = {name.removeprefix("model."): values for name, values in merged.items()}
    assert set(wanted) | {"lm_head.weight"} >= set(kept) >= set(wanted)
    for name, values in wanted.items():
        torch.testing.assert_close(kept[name], values, rtol=1e-5, atol=1e-6)


def test_unknown_adapters_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_base(tmp_path / "base")
    adapter(tmp_path / "base", tmp_path / "a", 1, target_modules=["q_proj"])
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(config.read_text().replace('"LORA"', '"LOHA"'))

    arguments = ["--base", f"{tmp_path}/base", "--checkpoints", f"{tmp_path}/a"]
    assert delta_merge.main([*arguments, "--output", f"{tmp_path}/out"]) == 2

    assert "peft_type = 'LOHA'; expected LORA, with or without DoRA" in capsys.readouterr().err


def tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "a", "b", "c", "d"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)


@pytest.mark.dist
def test_the_result_loads_as_model_and_as_embedder(zero: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer, models
    from transformers import AutoModel

    run = tmp_path / "run"
    shutil.copytree(zero / "w2-z3-fp32", run / "checkpoints")
    shutil.copytree(zero / "base", tmp_path / "embedder")
    tokenizer(tmp_path / "embedder")
    transformer = models.Transformer(str(tmp_path / "embedder"), max_seq_length=9)
    pooling = models.Pooling(transformer.get_word_embedding_dimension(), "lasttoken")
    embedder = SentenceTransformer(
        modules=[transformer, pooling, models.Normalize()], prompts={"query": "a b"}
    )
    embedder.save(str(run / "model"))

    arguments = ["--base", f"{zero}/base", "--checkpoints", str(run), f"{zero}/w1-z2-bf16"]
    assert delta_merge.main([*arguments, "--output", f"{tmp_path}/out"]) == 0

    model = AutoModel.from_pretrained(tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(one, merged[name]) for name, one in model.state_dict().items())
    loaded = SentenceTransformer(str(tmp_path / "out"))
    assert loaded.prompts["query"] == "a b"
    assert loaded.max_seq_length == 9
    vectors = loaded.encode(["a c", "d"], convert_to_tensor=True)
    ids = torch.tensor([[2, 4]])
    wanted = torch.nn.functional.normalize(model(ids).last_hidden_state[0, -1], dim=0)
    torch.testing.assert_close(vectors[0].cpu(), wanted.detach(), rtol=1e-4, atol=1e-5)
