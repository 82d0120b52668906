"""Models of sentence-transformers some of whose weights are in no file are refused, others not."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, T5Config, T5EncoderModel

from tests.support.exported import make_base
from tools import search
from trainer.errors import RecipeError
from trainer.evaluation.exported import load_model

Tensors = dict[str, Tensor]
ROOT = Path(__file__).resolve().parents[2]
FILE, ADAPTER = "model.safetensors", "adapter_model.safetensors"
TEXTS = ["a cat", "rates rose in March"]
LOST = "layers.1.self_attn.v_proj"


def renamed(tensors: Tensors, start: str = "") -> Tensors:
    return {f"{start}encoder.net.{name.removeprefix(start)}": one for name, one in tensors.items()}


def lacks_one(tensors: Tensors) -> Tensors:
    return {name: one for name, one in tensors.items() if LOST not in name}


def change_file(file: Path, change: Callable[[Tensors], Tensors]) -> None:
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def save_modules(folder: Path, base: Path) -> Path:
    """A folder that sentence-transformers writes."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    modules = [Transformer(str(base)), Pooling(32, pooling_mode="mean")]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), num_hidden_layers=2)


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_modules(tmp_path_factory.mktemp("whole") / "model", base)


@pytest.fixture(scope="module")
def adapter(base: Path, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Likewise with an adapter in place of weights."""
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("adapter") / "model"))
    (folder / FILE).unlink()
    (folder / "config.json").unlink()
    config = LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], task_type="FEATURE_EXTRACTION",
        init_lora_weights=False,
    )  # fmt: skip
    torch.manual_seed(0)
    get_peft_model(AutoModel.from_pretrained(base), config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed, r"24 of 24 .*first: embed_tokens\.weight\), and .* without the prefix encoder\."),
        (lacks_one, rf"1 of 24 tensors are missing \(first: {LOST}\.weight\)\."),
    ],
)
def test_missing_weights_are_named(
    whole: Path, tmp_path: Path, change: Callable[[Tensors], Tensors], message: str
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    change_file(folder / FILE, change)
    for load in (lambda: load_model(str(folder)), lambda: search.load_model(folder)):
        with pytest.raises(
            RecipeError, match=rf"--model: .*; expected weights of qwen3: {message}"
        ):
            load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: renamed(one, "base_model.model."),
         r"8 of 8 .* 8 of the file are unknown .* without the prefix encoder\.net\. "),
        (lacks_one, rf"2 of 8 tensors are missing \(first: {LOST}\.lora_A\.weight\)\."),
    ],
)  # fmt: skip
def test_missing_weights_of_an_adapter_are_named(
    adapter: Path, tmp_path: Path, change: Callable[[Tensors], Tensors], message: str
) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "model"))
    change_file(folder / ADAPTER, change)
    with pytest.raises(
        RecipeError, match=rf"--model: .* = an adapter that lacks weights; .*{message}"
    ):
        load_model(str(folder))


def test_sound_models_load_and_embed_as_they_are(whole: Path, adapter: Path, base: Path) -> None:
    from sentence_transformers import SentenceTransformer

    for folder in (whole, adapter):
        own = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, convert_to_tensor=True)
        found = load_model(str(folder))
        assert torch.equal(found.encode(TEXTS, convert_to_tensor=True).cpu(), own), folder
        assert set(getattr(found[0].auto_model, "peft_config", {})) <= {"default"}


def test_the_base_of_an_adapter_is_looked_at(base: Path, adapter: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(base, tmp_path / "base"))
    change_file(other / FILE, lacks_one)
    folder = Path(shutil.copytree(adapter, tmp_path / "model"))
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace(str(base), str(other)))
    with pytest.raises(RecipeError, match=rf"--model: {other} = .*first: {LOST}\.weight"):
        load_model(str(folder))


def static(folder: Path, base: Path) -> Sequence[nn.Module]:
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    del folder
    return [StaticEmbedding(Tokenizer.from_file(str(base / "tokenizer.json")), embedding_dim=8)]


def t5(folder: Path, base: Path) -> Sequence[nn.Module]:
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    config = T5Config(vocab_size=320, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    T5EncoderModel(config).save_pretrained(folder)
    for file in base.glob("tokenizer*"):
        shutil.copy(file, folder)
    return [Transformer(str(folder)), Pooling(32, pooling_mode="mean")]


def routed(folder: Path, base: Path) -> Sequence[nn.Module]:
    from sentence_transformers.sentence_transformer.modules import Pooling, Router, Transformer

    del folder
    sides = [[Transformer(str(base)), Pooling(32, pooling_mode="mean")] for _ in range(2)]
    return [Router.for_query_document(query_modules=sides[0], document_modules=sides[1])]


def saved(folder: Path, modules: Sequence[nn.Module]) -> Path:
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(modules=list(modules), device="cpu").save(str(folder))
    return folder


@pytest.mark.parametrize("make", [static, t5, routed])
def test_other_modules_keep_loading(make: Any, base: Path, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", make(tmp_path / "own", base))
    vectors = load_model(str(folder)).encode_query(TEXTS)
    assert vectors.shape[0] == len(TEXTS)
    if make is static:
        return
    file = next(iter(sorted(folder.rglob(FILE), key=lambda one: -one.stat().st_size)))
    change_file(file, renamed)
    with pytest.raises(
        RecipeError, match=r"tensors are missing .* without the prefix encoder\.net"
    ):
        load_model(str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["evaluate", "mine"])
def test_the_commands_end_with_a_message(whole: Path, tmp_path: Path, tool: str) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    change_file(folder / FILE, renamed)
    pairs = [f'{{"text1": "a", "text2": "b", "score": {score}}}\n' for score in range(3)]
    (tmp_path / "sts.jsonl").write_text("".join(pairs))
    (tmp_path / "ir.jsonl").write_text('{"query": "a", "positive": "b"}\n' * 3)
    arguments = {
        "evaluate": ["--sets", f"{tmp_path}/sts.jsonl:sts", "--json"],
        "mine": ["--source", f"{tmp_path}/ir.jsonl", "--output", f"{tmp_path}/mined.jsonl"],
    }
    command = [sys.executable, f"tools/{tool}.py", "--model", str(folder), *arguments[tool]]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 2
    assert "without the prefix encoder.net." in ended.stderr
    assert not (tmp_path / "mined.jsonl").exists()
