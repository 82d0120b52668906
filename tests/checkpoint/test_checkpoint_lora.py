"""Adapter runs: small checkpoints, exact resume, refusals, and exports that embed as the trainer.

One launch of two ranks tells most of it: it trains, resumes, exports and meets every mistake.
"""

import json
import re
import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.support import corpus, tiny
from tests.support.cards import run_python
from tests.support.ranks import run_ranks
from tests.support.sessions import cut, run_of, run_session
from trainer.checkpoint.manifest import digest, read_manifest
from trainer.checkpoint.safetensors_file import read_header
from trainer.checkpoint.tensors import numel
from trainer.errors import TrainerError

pytestmark = pytest.mark.dist

TEXTS = ["w3", "w4 w5 w6", " ".join(f"w{i}" for i in range(40))]
LORA = "model.lora={{rank: 4, alpha: 8, dropout: 0.1, targets: [q_proj, v_proj, down_proj]}}"
DORA = "model.lora={{rank: 4, alpha: 8, dora: true, rslora: true}}"
TANH = "model.projection={{size: 48, bias: true, activation: tanh}}"
OPEN = "model.attention=bidirectional"
SHORT = ("train.max_steps=2", "checkpoint.every_steps=1")
RUNS = {
    "both": (LORA, "model.projection={{size: 12}}", "checkpoint.export=both"),
    "adapter": (DORA, "model.pooling=mean", "checkpoint.export=adapter", *SHORT),
    "merged": (DORA, OPEN, TANH, "model.pooling=weighted_mean",
               "engine.deepspeed=zero2_fp32.json", *SHORT),
    "wide": ("model.lora={{rank: 1, alpha: 4}}", "model.path={folder}/wide model", *SHORT),
}  # fmt: skip
"""Overrides of each run on two ranks; six steps and a checkpoint after three, or two steps."""


@dataclass
class Told:
    """What a rank brings back."""

    vectors: dict[str, Tensor] = field(default_factory=dict)
    """The trainer's embeddings of TEXTS by run."""
    parities: dict[str, Any] = field(default_factory=dict)
    """Content of parity.json, by the model of the ranks, by run."""
    mistakes: dict[str, str] = field(default_factory=dict)
    """Messages by mistake."""


def embed(session: Any) -> Tensor:
    """The trainer's vectors of TEXTS."""
    from trainer.engine.embed import embed_texts

    return embed_texts(
        TEXTS,
        instruction="w1 w2 ",
        max_tokens=16,
        encoder=session.encoder,
        grad_cache=session.built.grad_cache,
        ranks=session.ranks,
        chunk_tokens=64,
    ).cpu()


def size_of(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def flip_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def body(rank: int, world_size: int, folder: Path) -> Told:
    """Train, resume, export and err; the first rank touches files, with barriers around."""
    from torch.distributed import barrier

    from trainer.session.parity import parity_of_session

    told = Told()

    def alone(act: Any, *arguments: Any) -> None:
        barrier()
        if rank == 0:
            act(*arguments)
        barrier()

    for name, more in RUNS.items():
        run = run_of(folder, name, *more)
        run_session(run, resume=False)
        told.vectors[name] = embed(run.session)
        told.parities[name] = parity_of_session(run.session)
        run.session.built.engine.destroy()
    alone(partial(cut, after=3), folder / "both", folder / "cut")
    run = run_of(folder, "cut", *RUNS["both"])
    run_session(run, resume=True)
    run.session.built.engine.destroy()

    def attempt(name: str, *overrides: str) -> None:
        with pytest.raises(TrainerError) as caught:
            run_of(folder, "cut", *overrides).prepare(resume=True)
        told.mistakes[name] = f"{caught.value} Exit code {caught.value.exit_code}."

    base = folder / "model" / "model.safetensors"
    alone(flip_last_byte, base)
    attempt("changed base", *RUNS["both"])
    alone(flip_last_byte, base)
    attempt("full from adapters", "model.projection={{size: 12}}")
    attempt("other projection", LORA, "model.projection={{size: 12, bias: true}}")
    attempt("other rank", "model.lora={{rank: 8}}", "model.projection={{size: 12}}")
    attempt("other base", LORA, "model.path={folder}/other")
    attempt("unknown target", "model.lora={{targets: [q_proj, query]}}")
    attempt("no target", "model.lora={{targets: [query]}}")
    attempt("rank 0", "model.lora={{rank: 0}}")
    attempt("adapter of an open decoder", LORA, OPEN, "checkpoint.export=both")
    attempt("export without adapters", "checkpoint.export=both")
    return told


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    corpus.make_workspace(folder)
    shutil.copytree(folder / "model", folder / "other")
    wide = tiny.qwen3_config(
        eos_token_id=2, pad_token_id=0, hidden_size=256, intermediate_size=1024, head_dim=64
    )
    tiny.save_model(wide, folder / "wide model")
    corpus.save_tokenizer(folder / "wide model")
    return folder


@pytest.fixture(scope="module")
def told(workspace: Path) -> Told:
    first, second = run_ranks(body, 2, workspace, timeout_sec=240)
    assert first.mistakes == second.mistakes
    for name, parity in first.parities.items():
        assert (parity.vectors == second.parities[name].vectors).all()
    return first


def test_checkpoint_is_small_and_holds_no_base(told: Told, workspace: Path) -> None:
    from trainer.checkpoint.zero_format import read_zero

    checkpoint = workspace / "wide" / "checkpoints" / "step-2"
    base = read_header(workspace / "wide model" / "model.safetensors").slots
    num_base = sum(numel(slot.shape) for slot in base.values())
    saved = read_zero(checkpoint).tensors
    assert all(".lora_" in name for name in saved)
    assert num_base > 100 * sum(numel(tensor.shape) for tensor in saved.values())
    assert size_of(checkpoint) < 0.05 * size_of(workspace / "wide model")


def test_manifest_names_the_base(told: Told, workspace: Path) -> None:
    saved = read_manifest(workspace / "both" / "checkpoints" / "step-6").base
    assert saved is not None
    assert saved.path == f"{workspace}/model"
    files = {
        name: digest(workspace / "model" / name) for name in ("config.json", "model.safetensors")
    }
    assert saved.files == files


def test_resumed_equals_uninterrupted_to_the_bit(told: Told, workspace: Path) -> None:
    names = ("model.safetensors", "2_Dense/model.safetensors", "adapter/adapter_model.safetensors")
    for name in (f"model/{name}" for name in names):
        assert (workspace / "cut" / name).read_bytes() == (workspace / "both" / name).read_bytes()
    cut, whole = (losses(workspace / run / "metrics.jsonl") for run in ("cut", "both"))
    assert cut == whole
    assert len(cut) == 6


def losses(path: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("changed base", r"step-6: base .*/model/model.safetensors = \d+ bytes, sha256 .*expec"),
        ("full from adapters", r"step-6: model.lora = None \(was {.*expected the run that wrote"),
        ("other rank", r"step-6: .*model.lora.rank = 8 \(was 4\)"),
        ("other projection", r"step-6: model.projection.bias = True \(was False\)"),
        ("other base", r"step-6: model.path = '.*/other' \(was '.*/model'\)"),
        ("unknown target", r"lora.targets = query \(matches nothing\); .* gate_proj, k_proj"),
        ("no target", r"model.lora.targets = query \(matches nothing\)"),
        ("rank 0", r"model.lora.rank = 0; expected .*at least 1"),
        (
            "adapter of an open decoder",
            r"checkpoint.export = both; expected merged where a decoder",
        ),
        ("export without adapters", r"checkpoint.export = 'both'; expected merged where all"),
    ],
)
def test_mistakes_are_told(told: Told, mistake: str, message: str) -> None:
    assert re.search(f"{message}.* Exit code 2.", told.mistakes[mistake]), told.mistakes[mistake]


EXPORTS = [
    ("both", "model"), ("both", "model/adapter"), ("adapter", "model"), ("merged", "model"),
]  # fmt: skip


@pytest.mark.parametrize(("run", "folder"), EXPORTS)
def test_every_export_holds_the_vectors_of_its_model(
    told: Told, workspace: Path, run: str, folder: str
) -> None:
    from trainer.export.clients.compare import judge
    from trainer.export.clients.folder import read_export
    from trainer.export.clients.load_plain import run_transformers
    from trainer.export.from_folder import parity_of_folder

    export = read_export(workspace / run / folder)
    parity = export.parity
    assert parity is not None
    made = told.parities[run]
    assert parity.settings == made.settings
    assert [text.token_ids for text in parity.texts] == [text.token_ids for text in made.texts]
    assert (parity.vectors == made.vectors).all()
    # one rank makes of the folder what two ranks made before it was written
    alone = parity_of_folder(export.path)
    assert abs(alone.vectors - parity.vectors).max() < 1e-5
    assert alone.settings == parity.settings
    judgement = judge(parity, run_transformers(export, parity), 0.99999)
    assert judgement.field is None, judgement


@pytest.mark.parametrize(("run", "folder"), EXPORTS)
def test_export_gives_the_trainers_vectors(
    told: Told, workspace: Path, run: str, folder: str
) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(workspace / run / folder))
    vectors = model.encode(TEXTS, prompt_name="query", convert_to_tensor=True)
    close(vectors, told.vectors[run])


def close(got: Tensor, want: Tensor) -> None:
    """Unit vectors of float32 models: other kernels and one rounding of merged weights apart."""
    assert (got.cpu() - want).abs().max() < 1e-5
    assert nn.functional.cosine_similarity(got.cpu(), want).min() > 0.99999


def test_peft_loads_the_adapter(told: Told, workspace: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModel, AutoTokenizer

    base = AutoModel.from_pretrained(workspace / "model")
    model = PeftModel.from_pretrained(base, workspace / "both" / "model" / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(workspace / "both" / "model" / "adapter")
    ids = tokenizer("w1 w2 " + TEXTS[0], return_tensors="pt").input_ids
    state = model(input_ids=ids).last_hidden_state[:, -1]
    dense = load_file(workspace / "both" / "model" / "adapter" / "2_Dense" / "model.safetensors")
    state = nn.functional.linear(state, dense["linear.weight"])
    assert state.shape[1] == 12
    close(nn.functional.normalize(state).detach(), told.vectors["both"][:1])


def test_a_merge_takes_the_mean_of_projections_that_the_base_has_not(
    told: Told, workspace: Path
) -> None:
    from trainer.checkpoint.zero_format import read_zero
    from trainer.export.from_folder import parity_of_folder
    from trainer.merge import MergeSettings, merge_checkpoints

    checkpoints = [workspace / "both" / "checkpoints" / f"step-{step}" for step in (3, 6)]
    output = workspace / "merged checkpoints"
    merge_checkpoints(workspace / "model", checkpoints, output, MergeSettings(lambda_=0.5))
    weights = []
    for checkpoint in checkpoints:
        stored = read_zero(checkpoint).tensors["projection.linear.weight"]
        whole = torch.empty(numel(stored.shape), dtype=torch.float64)
        stored.open()(0, whole)
        weights.append(whole.view(stored.shape))
    assert not torch.equal(*weights)
    merged = load_file(output / "2_Dense" / "model.safetensors")
    assert merged.keys() == {"linear.weight"}
    assert torch.equal(merged["linear.weight"], (sum(weights) / 2).float())
    assert json.loads((output / "merge.json").read_text())["averaged"] == [
        "projection.linear.weight"
    ]
    assert parity_of_folder(output).settings.dimensions == 12


def test_the_cards_of_both_folders_give_the_same_vectors(told: Told, workspace: Path) -> None:
    model = workspace / "both" / "model"
    found = [
        vectors
        for folder in (model, model / "adapter")
        for names in run_python(folder / "README.md").values()
        for vectors in [torch.as_tensor(names["query_vectors"])]
    ]
    assert len(found) == 4
    for vectors in found[1:]:
        # merged weights are rounded once, adapters are added at each product
        close(vectors, found[0])
    assert "LoRA adapters of rank 4, alpha 8" in (model / "adapter" / "README.md").read_text()
