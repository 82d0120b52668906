"""The command that compares: by running clients, by rules, and by asking servers."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.support.exported import edit, make_base, make_export
from tools import parity
from trainer.cli import ending_with_code
from trainer.errors import RecipeError
from trainer.evaluation.exported import ExportedEmbedder, Limits, check_dims, load_model
from trainer.export.clients.folder import read_export
from trainer.export.clients.run import least_cosine
from trainer.export.from_folder import parity_of_folder
from trainer.export.parity_file import read_parity, write_parity
from trainer.recipe.schema import ProjectionRecipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    return make_export(make_base(folder / "base"), folder / "model")


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(sound, tmp_path / "model"))


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the command sets for its process is taken back."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with warnings.catch_warnings():
        yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Exit code, stdout and stderr of a call."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["parity.py", *map(str, arguments)])
        capsys.readouterr()
        code = ending_with_code(parity.main)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


Call = Callable[..., tuple[int, str, str]]


def by_client(out: str) -> dict[str, dict[str, Any]]:
    """The JSON of a call, by name and first number of the release."""
    found = json.loads(out)["clients"]
    return {f"{e['client']} {e['version'].partition('.')[0]}".strip(): e for e in found}


@pytest.mark.slow
def test_installed_clients_run_and_others_are_read(sound: Path) -> None:
    done = subprocess.run(
        [sys.executable, "tools/parity.py", str(sound), "--json"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert (shown["folder"], shown["outcome"]) == (str(sound), "equal")
    found = by_client(done.stdout)
    for name in ("transformers 5", "sentence-transformers 6"):
        assert (found[name]["how"], found[name]["outcome"]) == ("loaded", "equal")
        assert found[name]["cosine"] > 0.9999
    assert found["transformers 4"]["how"] == "read"
    assert set(found["tei"]) == {
        "client", "version", "how", "outcome", "cosine", "field", "reason",
    }  # fmt: skip


def test_a_weighted_mean_without_the_prompt_is_the_same_everywhere(
    tmp_path: Path, call: Call
) -> None:
    made = make_export(make_base(tmp_path / "base"), tmp_path / "model", pooling="weighted_mean")
    edit(made / "1_Pooling" / "config.json", lambda content: content.update(include_prompt=False))
    write_parity(made, parity_of_folder(made))
    whole = make_export(tmp_path / "base", tmp_path / "whole", pooling="weighted_mean")
    ours, theirs = (read_parity(folder / "parity.json").texts for folder in (made, whole))
    assert [float(a.vector @ b.vector) > 0.999999 for a, b in zip(ours, theirs, strict=True)] == [
        not text.prompt for text in ours
    ]
    code, out, _ = call(made, "--json", "--clients", "transformers-5,sentence-transformers-6")
    assert code == 0
    for entry in by_client(out).values():
        assert (entry["how"], entry["outcome"]) == ("loaded", "equal")
        assert entry["cosine"] > 0.999999


def test_a_projection_is_applied_by_all_that_are_loaded(tmp_path: Path, call: Call) -> None:
    projection = ProjectionRecipe(size=12, bias=True, activation="tanh")
    made = make_export(make_base(tmp_path / "base"), tmp_path / "model", projection=projection)
    assert read_parity(made / "parity.json").vectors.shape[1] == 12
    code, out, _ = call(made, "--json", "--clients", "transformers-5,sentence-transformers-6")
    assert code == 0
    for entry in by_client(out).values():
        assert (entry["how"], entry["outcome"]) == ("loaded", "equal")
        assert entry["cosine"] > 0.999999
    # what evaluates, searches and serves an exported folder
    model = load_model(str(made))
    embed = ExportedEmbedder(model, "ir", Limits())
    parity = read_parity(made / "parity.json")
    texts = [text for text in parity.texts if text.prompt_name == "query"]
    found = embed([text.text for text in texts], side="query").numpy()
    assert np.abs(found - np.stack([text.vector for text in texts])).max() < 1e-5
    with pytest.raises(RecipeError, match="expected at most 12"):
        check_dims([13], model, str(made))


def tamper(folder: Path) -> None:
    """Weights of another model."""
    tensors = load_file(folder / "model.safetensors")
    tensors["layers.1.mlp.up_proj.weight"] *= 1.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_tampered_weights_are_found_by_loading_alone(folder: Path, call: Call) -> None:
    tamper(folder)
    assert call(folder, "--no-load")[0] == 0
    code, out, _ = call(folder, "--json", "--clients", "transformers-5,sentence-transformers")
    found = by_client(out)
    assert code == parity.DIFFERENT
    for name in ("transformers 5", "sentence-transformers 6"):
        assert (found[name]["outcome"], found[name]["field"]) == ("different", "vectors")
        assert found[name]["cosine"] < 0.9999
        assert "expected 0.9999 or more" in found[name]["reason"]
    assert call(folder, "--clients", "transformers-5", "--min-cosine", "0.1")[0] == 0


def test_a_loaded_client_names_the_field_behind_a_difference(folder: Path, call: Call) -> None:
    edit(folder / "tokenizer.json", lambda content: content.update(post_processor=None))
    code, out, _ = call(folder, "--clients", "transformers-5,sentence-transformers-6")
    assert code == parity.DIFFERENT
    assert "tokenizer.json: post_processor = missing; expected an end token, id 2" in out
    assert out.count("loaded  different") == 2
    assert "position 39" in out


def test_a_client_that_raises_has_refused(folder: Path, call: Call) -> None:
    edit(folder / "config.json", lambda content: content.update(model_type="none_such"))
    code, out, _ = call(folder, "--json", "--clients", "transformers-5")
    (entry,) = json.loads(out)["clients"]
    assert (code, entry["how"], entry["outcome"]) == (0, "loaded", "refused")
    assert "none_such" in entry["reason"]


def test_a_refusal_names_no_place_on_this_disk(folder: Path, call: Call) -> None:
    (folder / "model.safetensors").unlink()
    _, out, _ = call(folder, "--json", "--clients", "transformers-5")
    (entry,) = json.loads(out)["clients"]
    assert entry["outcome"] == "refused"
    assert "model.safetensors" in entry["reason"]
    assert "the folder" in entry["reason"]
    assert str(folder) not in entry["reason"]


def test_another_pooling_differs_in_vectors(folder: Path, call: Call) -> None:
    pooling = {"pooling_mode_lasttoken": False, "pooling_mode_mean_tokens": True}
    edit(folder / "1_Pooling" / "config.json", lambda content: content.update(pooling))
    code, out, _ = call(folder, "--json", "--clients", "sentence-transformers-6,transformers-5")
    found = by_client(out)
    assert code == parity.DIFFERENT
    place = "1_Pooling/config.json: pooling_mode_lasttoken"
    assert found["sentence-transformers 6"]["field"] == place
    assert found["transformers 5"]["cosine"] < 0.99


def test_parity_is_made_anew(folder: Path, call: Call) -> None:
    before = read_parity(folder / "parity.json")
    (folder / "parity.json").write_text("damaged")
    assert call(folder, "--no-load")[0] == 2
    code, out, _ = call(folder, "--no-load", "--write")
    assert code == 0
    assert "parity.json: made by the model of this folder." in out
    after = read_parity(folder / "parity.json")
    assert after.settings == before.settings
    assert np.abs(after.vectors - before.vectors).max() < 1e-6


def test_an_old_folder_is_mended_and_says_how(folder: Path, call: Call) -> None:
    (folder / "parity.json").unlink()
    edit(folder / "config.json", lambda content: content.pop("rope_theta"))
    edit(
        folder / "tokenizer_config.json",
        lambda content: content.update(tokenizer_class="TokenizersBackend", backend="tokenizers"),
    )
    (folder / "model.safetensors").chmod(0o600)
    code, out, err = call(folder, "--no-load", "--json")
    assert "parity.json: file = missing" in err
    before = by_client(out)
    # clients that would have been different refuse other fields first
    assert (code, before["vllm"]["outcome"]) == (0, "refused")
    assert before["transformers 4"]["outcome"] == "refused"
    code, out, _ = call(folder, "--no-load", "--json", "--fix")
    shown = json.loads(out)
    assert (code, shown["outcome"]) == (0, "equal")
    changes = " ".join(shown["changes"])
    for word in ("rope_theta", "tokenizer_class", "backend", "mode 0644", "parity.json"):
        assert word in changes, changes
    assert by_client(out)["transformers 4"]["outcome"] == "equal"
    assert json.loads(call(folder, "--no-load", "--json", "--fix")[1])["changes"] == []


Embed = Callable[[Sequence[str]], np.ndarray]


def embedder(folder: Path) -> Embed:
    """Vectors of texts by sentence-transformers, cut as the folder says."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder))
    return lambda texts: np.asarray(model.encode(list(texts), show_progress_bar=False))


@contextmanager
def serving(embed: Embed, *, status: int = 200, raw: bytes | None = None) -> Iterator[str]:
    """A server with the interfaces of three servers; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.say(200, json.dumps({"data": [{"id": "the-model"}]}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = ANSWERS[self.path](body, embed)
            self.say(status, json.dumps(answer).encode() if raw is None else raw)

        def say(self, status: int, said: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def openai_answer(body: dict[str, Any], embed: Embed) -> object:
    assert body["model"] == "the-model"
    rows = embed(body["input"]).tolist()
    entries = [{"index": i, "embedding": row} for i, row in enumerate(rows)]
    return {"object": "list", "data": entries[::-1]}


def tei_answer(body: dict[str, Any], embed: Embed) -> object:
    assert body["truncate"] is True
    return embed(body["inputs"]).tolist()


def llama_answer(body: dict[str, Any], embed: Embed) -> object:
    return [{"index": 0, "embedding": embed([body["content"]]).tolist()}]


ANSWERS = {"/v1/embeddings": openai_answer, "/embed": tei_answer, "/embedding": llama_answer}


@pytest.mark.parametrize("api", ["openai", "tei", "llama.cpp"])
def test_a_server_of_the_model_is_equal(sound: Path, call: Call, api: str) -> None:
    with serving(embedder(sound)) as url:
        code, out, err = call(sound, "--url", url, "--api", api, "--json")
    assert code == 0, out + err
    (entry,) = json.loads(out)["clients"]
    assert (entry["how"], entry["outcome"], entry["version"]) == ("served", "equal", url)
    assert entry["cosine"] > 0.9999


def test_a_server_of_another_model_is_different(sound: Path, folder: Path, call: Call) -> None:
    tamper(folder)
    with serving(embedder(folder)) as url:
        code, out, _ = call(sound, "--url", f"{url}/v1", "--json")
    (entry,) = json.loads(out)["clients"]
    assert (code, entry["outcome"], entry["field"]) == (parity.DIFFERENT, "different", "vectors")


def test_a_server_that_does_not_normalise_is_told_of(sound: Path, call: Call) -> None:
    embed = embedder(sound)
    with serving(lambda texts: 3 * embed(texts)) as url:
        code, out, _ = call(sound, "--url", url)
    assert code == 0
    assert "served  equal" in out
    assert "norm 3.000; expected 1. Normalise what this server answers." in out


def test_a_client_that_does_not_normalise_is_different(folder: Path, call: Call) -> None:
    edit(folder / "modules.json", lambda content: content.pop())
    code, out, _ = call(folder, "--json", "--clients", "sentence-transformers-6")
    (entry,) = json.loads(out)["clients"]
    assert (code, entry["field"]) == (parity.DIFFERENT, "modules.json: type")
    assert entry["cosine"] > 0.9999
    assert "expected 1." in entry["reason"]


def zeros(texts: Sequence[str]) -> np.ndarray:
    return np.zeros((len(texts), 32))


@pytest.mark.parametrize(
    ("status", "raw", "code", "said"),
    [
        (503, b"busy", 0, "HTTP 503: busy"),
        (200, b"<html>", 2, "answer = no JSON"),
        (200, b'{"data": []}', 2, "expected one vector for each text"),
        (200, b"[]", 2, "expected one vector for each text"),
        (200, None, 1, "cosine -1.000000"),
    ],
)
def test_a_strange_answer_is_told(
    sound: Path, call: Call, status: int, raw: bytes | None, code: int, said: str
) -> None:
    with serving(zeros, status=status, raw=raw) as url:
        found, out, err = call(sound, "--url", url)
    assert found == code
    assert said in out + err


def test_mistakes_end_with_one_message(sound: Path, tmp_path: Path, call: Call) -> None:
    with serving(zeros) as url:
        pass  # nobody answers there now
    for arguments, said in {
        (tmp_path / "none",): "modules.json = missing; expected an exported model",
        (tmp_path,): "modules.json = missing",
        (sound, "--url", url): "server = ",
    }.items():
        code, out, err = call(*arguments)
        assert (code, out) == (2, "")
        assert said in err
        assert len(err.splitlines()) == 1
    without = tmp_path / "without"
    shutil.copytree(sound, without)
    (without / "parity.json").unlink()
    code, _, err = call(without, "--url", url)
    assert code == 2
    assert "parity.json: file = missing; expected texts to compare. Make it anew with" in err


@pytest.mark.parametrize(
    "arguments", [("--clients", "elsewhere"), ("--min-cosine", "2"), ("--api", "grpc")]
)
def test_the_command_line_is_checked(
    sound: Path, call: Call, arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        call(sound, *arguments)
    assert "expected" in capsys.readouterr().err or arguments[0] == "--api"


def test_bfloat16_is_compared_with_its_own_bound(sound: Path) -> None:
    made = read_export(sound).parity
    assert made is not None
    assert least_cosine(made, None) == 0.9999
    assert least_cosine(made, 0.5) == 0.5


@pytest.mark.parametrize(
    ("lost", "prefix", "message"),
    [
        (
            "layers.1.",
            "",
            r"4 of 16 tensors are missing \(first: layers\.1\.self_attn\.q_proj\.lora",
        ),
        ("nothing", "encoder.net.", r"16 of 16 .* without the prefix encoder\.net\. that the file"),
    ],
    ids=["lacks a layer", "renamed"],
)
def test_an_adapter_without_its_weights_gives_no_parity(
    sound: Path, folder: Path, call: Call, lost: str, prefix: str, message: str
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    base, start = sound.parent / "base", "base_model.model."
    for name in ("model.safetensors", "config.json", "parity.json"):
        (folder / name).unlink()
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(AutoModel.from_pretrained(base), lora).save_pretrained(folder)
    adapter = folder / "adapter_model.safetensors"
    whole = load_file(adapter)
    kept = {
        f"{start}{prefix}{name.removeprefix(start)}": one
        for name, one in whole.items()
        if lost not in name
    }
    save_file(kept, adapter, metadata={"format": "pt"})
    code, _, err = call(folder, "--write", "--no-load")
    assert code == 2
    assert re.search(message, err)
    assert not (folder / "parity.json").exists()
    save_file(whole, adapter, metadata={"format": "pt"})
    assert call(folder, "--write", "--no-load")[0] != 2
    assert (folder / "parity.json").is_file()
