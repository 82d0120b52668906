"""Every dtype of the safetensors format: taken, or named beside those that are taken."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.support import corpus, tiny
from tools.delta_merge import main
from trainer.checkpoint.base_identity import check_dtypes
from trainer.checkpoint.safetensors_dtypes import BITS, FLOATS, INTEGERS
from trainer.checkpoint.safetensors_file import DTYPES, read_header
from trainer.errors import CheckpointError
from trainer.preflight.checks import check_model

UNSUPPORTED = sorted({*BITS} - {*FLOATS, *INTEGERS})
EXPECTED = (
    "expected weights in F64, F32, F16 or BF16, and buffers in these or I64, I32, I16, I8, U8, BOOL"
)


def write(path: Path, tensors: dict[str, tuple[str, list[int]]], *, cut: int = 0) -> Path:
    """A file with zeros, made from the format's description; `cut` bytes fewer than it says."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        size = torch.Size(shape).numel() * BITS[dtype]
        assert size % 8 == 0
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size // 8]}
        end += size // 8
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(end - cut))
    return path


def test_the_tables_are_those_of_the_format(tmp_path: Path) -> None:
    assert DTYPES.keys() == {*FLOATS, *INTEGERS}
    for name, dtype in DTYPES.items():
        assert BITS[name] == 8 * dtype.itemsize
    for name in BITS:
        # the library reads what the tables say the bytes of 24 elements are
        path = write(tmp_path / f"{name}.safetensors", {"x": (name, [2, 12])})
        with safe_open(path, framework="pt") as file:
            assert file.get_slice("x").get_shape()[0] == 2


@pytest.mark.parametrize("dtype", UNSUPPORTED)
def test_what_is_not_supported_is_named(tmp_path: Path, dtype: str) -> None:
    path = write(tmp_path / "model.safetensors", {
        "norm.weight": ("BF16", [4]), "a.weight": (dtype, [2, 12]), "b.weight": (dtype, [0, 3]),
    })  # fmt: skip
    wanted = rf"model.safetensors: dtype = {dtype} \(2 of 3 tensors\), the first in 'a.weight'; "
    with pytest.raises(CheckpointError, match=wanted + EXPECTED):
        read_header(path)


@pytest.mark.parametrize("dtype", UNSUPPORTED)
def test_a_cut_file_is_still_called_cut(tmp_path: Path, dtype: str) -> None:
    path = write(tmp_path / "model.safetensors", {"a.weight": (dtype, [2, 12])}, cut=1)
    with pytest.raises(CheckpointError, match=r"tensors end at byte \d+ of \d+; expected a whole"):
        read_header(path)


def test_lengths_below_a_byte(tmp_path: Path) -> None:
    """24 elements of 6 bits are 18 bytes; 3 of 4 bits end within a byte, which nothing may."""
    path = write(tmp_path / "a.safetensors", {"x": ("F6_E2M3", [24]), "y": ("F4", [2])})
    content = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"F6_E2M3 \(1 of 2 tensors\), F4 \(1 of 2 tensors\)"):
        read_header(path)
    path.write_bytes(content.replace(b'"shape": [2]', b'"shape": [3]'))
    with pytest.raises(CheckpointError, match=r"entry 'y' = .*expected a whole safetensors file"):
        read_header(path)
    path.write_bytes(content.replace(b'"F4"', b'"F3"'))
    with pytest.raises(CheckpointError, match=r"'y' dtype = 'F3', which the format has not; exp"):
        read_header(path)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_are_buffers_and_no_weights(tmp_path: Path, dtype: str) -> None:
    path = write(tmp_path / "model.safetensors", {
        "layers.0.weight": ("F32", [2]), "layers.0.attn.bias": (dtype, [2, 2]),
    })  # fmt: skip
    assert read_header(path).slots["layers.0.attn.bias"].dtype == DTYPES[dtype]
    write(path, {"layers.0.qweight": (dtype, [2, 2])})
    with pytest.raises(CheckpointError, match=rf"dtype = {dtype} \(1 of 1 tensors\)"):
        read_header(path)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A base, and the same with its matrices in 8 bits, whole and in shards."""
    config = tiny.qwen3_config(eos_token_id=2, pad_token_id=0)
    for name in ("base", "float8", "float8 shards"):
        tiny.save_model(config, tmp_path / name)
    corpus.save_tokenizer(tmp_path / "base")
    from safetensors.torch import load_file

    whole = load_file(tmp_path / "base" / "model.safetensors")
    small = {k: v.to(torch.float8_e4m3fn) if v.ndim == 2 else v for k, v in whole.items()}
    save_file(small, tmp_path / "float8" / "model.safetensors", {"format": "pt"})
    shards = tmp_path / "float8 shards"
    (shards / "model.safetensors").unlink()
    names = {name: f"model-0000{1 + (value.ndim == 2)}-of-00002.safetensors"
             for name, value in small.items()}  # fmt: skip
    for file in set(names.values()):
        part = {name: small[name] for name, place in names.items() if place == file}
        save_file(part, shards / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": names}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


@pytest.mark.parametrize("name", ["float8", "float8 shards"])
def test_in_a_merge_and_as_a_base(
    models: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = rf"/{name}/model.*safetensors: dtype = F8_E4M3 \(29 of \d+ tensors\), the .*{EXPECTED}"
    base, odd, out = str(models / "base"), str(models / name), str(models / "out")
    for inputs in (["--base", odd, "--checkpoints", base], ["--base", base, "--checkpoints", odd]):
        assert main([*inputs, "--output", out]) == 2
        assert re.search(wanted, capsys.readouterr().err)
    with pytest.raises(CheckpointError, match=wanted):
        check_model(tiny.make_recipe(models / name))
    with pytest.raises(CheckpointError, match=wanted):
        check_dtypes(odd, None)
    check_dtypes(base, None)
    check_model(tiny.make_recipe(models / "base"))
