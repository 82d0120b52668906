"""Readers against live engines, and against files that are damaged, stale or hostile."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.support.zero_checkpoints import SETS, make_checkpoint_set, write_base
from trainer.checkpoint.open import file_hash, fingerprint, identity, open_checkpoint
from trainer.checkpoint.tensors import LowRankTensor, StoredTensor, read_whole
from trainer.checkpoint.zero_format import read_zero
from trainer.errors import CheckpointError

SPECS = [pytest.param(spec, id=spec.name) for specs in SETS.values() for spec in specs]


@pytest.fixture(scope="session")
def zero(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint_set(tmp_path_factory)


@pytest.fixture
def zero3(zero: Path, tmp_path: Path) -> Path:
    """A ZeRO-3 tag folder of two ranks that a test may damage."""
    shutil.copytree(zero / "w2-z3-fp32" / "step-2", tmp_path / "step-2")
    return tmp_path / "step-2"


@pytest.mark.dist
@pytest.mark.parametrize("spec", SPECS)
def test_zero_tensors_are_the_engines_masters(zero: Path, spec) -> None:
    truth = torch.load(zero / spec.name / "truth.pt")

    read = read_zero(zero / spec.name / "step-2").tensors

    wanted = {name for name in truth if not spec.drop_frozen or ".lora_" in name}
    assert set(read) == wanted
    for name in wanted:
        assert torch.equal(read_whole(read[name]), truth[name].double()), name


@pytest.mark.dist
@pytest.mark.parametrize("name", ["w2-z3-bf16-lora", "w2-z3-fp32-lora-only", "w3-z2-fp32-lora"])
def test_wrappers_are_taken_off_and_adapters_told_apart(zero: Path, name: str) -> None:
    base = open_checkpoint(zero / "base")

    source = open_checkpoint(zero / name)

    assert source.lora is not None
    assert source.lora.scale("layers.0.mlp.up_proj", 3) == pytest.approx(7 / 3)
    assert {f"{module}.weight" for module in source.adapters} < set(base.plain)
    if name.endswith("only"):
        assert source.plain == {}
    else:
        assert set(source.plain) == set(base.plain)


@pytest.mark.dist
def test_a_run_folder_a_checkpoints_folder_and_a_tag_are_the_same(zero: Path, tmp_path) -> None:
    shutil.copytree(zero / "w2-z3-fp32", tmp_path / "checkpoints")

    opened = [
        open_checkpoint(tmp_path / place) for place in ("", "checkpoints", "checkpoints/step-2")
    ]

    assert {one.path for one in opened} == {tmp_path / "checkpoints" / "step-2"}


@pytest.mark.dist
@pytest.mark.parametrize("tag", ["", "step-3", "../w2-z3-fp32/step-2"])
def test_latest_must_name_a_folder_beside_it(zero: Path, tmp_path: Path, tag: str) -> None:
    (tmp_path / "latest").write_text(tag)

    with pytest.raises(CheckpointError, match="latest: tag = "):
        open_checkpoint(tmp_path)


@pytest.mark.dist
def test_padding_of_flat_partitions_is_never_read(zero: Path, tmp_path: Path) -> None:
    shutil.copytree(zero / "w2-z3-fp32", tmp_path / "run")
    last = tmp_path / "run" / "step-2" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    states = torch.load(last, weights_only=False)
    shapes = torch.load(last.with_name(last.name.replace("optim", "model")))["param_shapes"]
    planted = 0
    for flat, group in zip(states["optimizer_state_dict"]["fp32_flat_groups"], shapes, strict=True):
        offset = 0
        for shape in group.values():
            offset += -(-shape.numel() // 2)
            if shape.numel() % 2:
                flat.data[offset - 1] = 1e30
                planted += 1
    torch.save(states, last)

    read = read_zero(tmp_path / "run" / "step-2").tensors

    truth = torch.load(zero / "w2-z3-fp32" / "truth.pt")
    assert planted > 10
    assert all(torch.equal(read_whole(read[name]), truth[name].double()) for name in truth)


@pytest.mark.dist
@pytest.mark.parametrize("kind", ["model", "optim"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_rank_is_named(zero3: Path, kind: str, rank: int) -> None:
    name = f"zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt"
    (zero3 / name).unlink()

    with pytest.raises(CheckpointError, match=name):
        read_zero(zero3)


@pytest.mark.dist
def test_stale_files_of_a_larger_world_are_named(zero: Path, zero3: Path) -> None:
    for kind in ("model", "optim"):
        name = f"zero_pp_rank_2_mp_rank_00_{kind}_states.pt"
        shutil.copy(zero3 / name.replace("rank_2", "rank_1"), zero3 / name)

    with pytest.raises(CheckpointError, match=r"world size = 2.*rank_2_mp_rank_00_model.*optim"):
        read_zero(zero3)


@pytest.mark.dist
def test_stale_files_of_another_stage_or_precision_are_named(zero: Path, zero3: Path) -> None:
    for path in (zero / "w2-z1-bf16" / "step-2").glob("*.pt"):
        shutil.copy2(path, zero3)
    os.utime(zero3 / "zero_pp_rank_0_mp_rank_00_model_states.pt")

    with pytest.raises(CheckpointError, match=r"two layouts, mp_rank_00_model_states\.pt beside"):
        read_zero(zero3)


@pytest.mark.dist
def test_a_rank_of_another_step_is_named(zero3: Path) -> None:
    path = zero3 / "zero_pp_rank_1_mp_rank_00_model_states.pt"
    torch.save(torch.load(path) | {"global_steps": 7}, path)

    with pytest.raises(CheckpointError, match="at step 7"):
        read_zero(zero3)


@pytest.mark.dist
def test_other_parallelism_is_refused(zero3: Path) -> None:
    shutil.copy(
        zero3 / "zero_pp_rank_0_mp_rank_00_model_states.pt", zero3 / "mp_rank_01_model_states.pt"
    )

    with pytest.raises(CheckpointError, match="data parallelism only"):
        read_zero(zero3)


@pytest.mark.dist
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_cut_file_is_named(zero3: Path, share: float) -> None:
    path = zero3 / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    os.truncate(path, int(path.stat().st_size * share))

    with pytest.raises(CheckpointError, match=f"{path.name}: content = unreadable"):
        read_zero(zero3)


class Bomb:
    """Unpickling it would make a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.dist
@pytest.mark.parametrize("kind", ["model", "optim"])
def test_a_pickle_that_would_run_code_is_refused_unrun(zero3, tmp_path, kind: str) -> None:
    path = zero3 / f"zero_pp_rank_0_mp_rank_00_{kind}_states.pt"
    content = torch.load(path, weights_only=False)
    torch.save(content | {"extra": Bomb(tmp_path / "ran")}, path)

    with pytest.raises(CheckpointError, match=r"pickled names = posix\.mkdir"):
        read_zero(zero3)

    assert not (tmp_path / "ran").exists()


@pytest.mark.dist
def test_a_bare_pickle_is_refused_unrun(zero3: Path, tmp_path: Path) -> None:
    path = zero3 / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))

    with pytest.raises(CheckpointError, match="content = unreadable"):
        read_zero(zero3)

    assert not (tmp_path / "ran").exists()


@pytest.mark.dist
def test_the_manifest_is_held_to(zero3: Path) -> None:
    files = {p.name: {"size": p.stat().st_size, "sha256": file_hash(p)} for p in zero3.glob("*.pt")}
    manifest = zero3 / "manifest.json"
    manifest.write_text(json.dumps({"files": files}))
    assert identity(open_checkpoint(zero3), hash_files=False)["manifest_sha256"]

    altered = {name: entry | {"sha256": "0"} for name, entry in files.items()}
    manifest.write_text(json.dumps({"files": altered}))
    identity(open_checkpoint(zero3), hash_files=False)
    with pytest.raises(CheckpointError, match=r"sha256 = \w+; expected 0 as in manifest"):
        identity(open_checkpoint(zero3), hash_files=True)

    dropped = dict(list(files.items())[1:])
    manifest.write_text(json.dumps({"files": dropped}))
    with pytest.raises(CheckpointError, match=r"= not in manifest\.json"):
        open_checkpoint(zero3)

    manifest.write_text(json.dumps({"files": files | {"gone.pt": {"size": 3}}}))
    with pytest.raises(CheckpointError, match=r"gone\.pt: size = no file; expected 3 bytes"):
        open_checkpoint(zero3)

    manifest.write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest\.json: content = damaged"):
        open_checkpoint(zero3)


@given(cuts=st.lists(st.integers(0, 60), max_size=4), span=st.tuples(*[st.integers(0, 60)] * 2))
def test_any_slice_of_any_pieces_is_that_of_the_whole(cuts: list[int], span) -> None:
    whole = torch.arange(60.0)
    tensor = StoredTensor((60,), tuple(whole.tensor_split(sorted(cuts))))
    start, stop = sorted(span)
    out = torch.empty(stop - start, dtype=torch.float64)

    tensor.open()(start, out)

    assert torch.equal(out, whole[start:stop].double())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("span", [(0, 77), (3, 5), (10, 40), (76, 77)])
def test_low_rank_updates_are_computed_by_row(transposed: bool, span: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, left, right = torch.randn(7, 11), torch.randn(7, 3), torch.randn(3, 11)
    parts = [one.t().contiguous() if transposed else one for one in (left, right)]
    stored = [StoredTensor(tuple(one.shape), (one.flatten(),)) for one in (weight, *parts)]
    tensor = LowRankTensor(*stored, 0.5, transposed=transposed)
    out = torch.empty(span[1] - span[0], dtype=torch.float64)

    tensor.open()(span[0], out)

    wanted = weight.double() + 0.5 * left.double() @ right.double()
    # the same products in float64, maybe summed in another order
    torch.testing.assert_close(out, wanted.flatten()[span[0] : span[1]], rtol=1e-14, atol=1e-14)


def test_sharded_and_single_folders_hold_the_same(tmp_path: Path) -> None:
    write_base(tmp_path / "one", dtype=torch.bfloat16)
    from transformers import AutoModel

    AutoModel.from_pretrained(tmp_path / "one").save_pretrained(
        tmp_path / "many", max_shard_size="5KB"
    )
    one, many = open_checkpoint(tmp_path / "one"), open_checkpoint(tmp_path / "many")

    assert len(many.files) > 3
    assert list(many.plain["norm.weight"].shape) == [25]
    assert fingerprint(one.plain) == fingerprint(many.plain)


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    from transformers import AutoModel

    write_base(tmp_path / "one")
    AutoModel.from_pretrained(tmp_path / "one").save_pretrained(
        tmp_path / "many", max_shard_size="9KB"
    )
    shard = sorted((tmp_path / "many").glob("model-*.safetensors"))[1]
    whole = shard.read_bytes()

    os.truncate(shard, len(whole) - 1)
    with pytest.raises(CheckpointError, match=f"{shard.name}: tensors end at byte"):
        open_checkpoint(tmp_path / "many")

    shard.write_bytes(whole + b"x")
    with pytest.raises(CheckpointError, match=f"{shard.name}: tensors end at byte"):
        open_checkpoint(tmp_path / "many")

    os.truncate(shard, 5)
    with pytest.raises(CheckpointError, match=f"{shard.name}: header of"):
        open_checkpoint(tmp_path / "many")

    shard.unlink()
    with pytest.raises(CheckpointError, match=f"weight_map names {shard.name} = absent"):
        open_checkpoint(tmp_path / "many")


def test_every_flipped_byte_of_a_header_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a.weight": torch.ones(4, 3), "b": torch.ones(5)}, path, {"format": "pt"})
    whole = path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    names = set(open_checkpoint(tmp_path).plain)

    for position in range(length):
        for flip in (0x01, 0x04, 0x20, 0xFF):
            damaged = bytearray(whole)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            try:
                source = open_checkpoint(tmp_path)
            except CheckpointError:
                continue
            # a changed name is noticed when names are matched; nothing else may pass
            padding = whole[position : position + 1].isspace()
            assert set(source.plain) != names or padding, (position, flip)


def test_a_folder_of_weights_and_loose_adapters_is_refused(tmp_path: Path) -> None:
    names = ["q.base_layer.weight", "q.lora_A.default.weight", "q.lora_B.default.weight"]
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "model.safetensors")

    with pytest.raises(CheckpointError, match="q = a weight with an adapter beside it"):
        open_checkpoint(tmp_path)


def test_hostile_json_is_refused(tmp_path: Path) -> None:
    deep = b"[" * 100_000
    (tmp_path / "model.safetensors").write_bytes(len(deep).to_bytes(8, "little") + deep)

    with pytest.raises(CheckpointError, match="header is not JSON"):
        open_checkpoint(tmp_path)


def test_folders_of_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="folder = absent"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="weights = none"):
        open_checkpoint(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3", "lora_alpha": 1}')
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors = absent"):
        open_checkpoint(tmp_path)
    loha = {"base_model.model.a.hada_w1_a": torch.ones(2)}
    save_file(loha, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="hada_w1_a = part of an adapter; expected LoRA"):
        open_checkpoint(tmp_path)


def test_the_layer_to_a_teachers_size_is_no_part_of_the_model(tmp_path: Path) -> None:
    tensors = {
        "module.backbone.layers.0.weight": torch.ones(2, 2),
        "module.projection.linear.weight": torch.ones(3, 2),
        "module.teacher_layer.weight": torch.ones(5, 3),
    }
    save_file(tensors, tmp_path / "model.safetensors")

    found = open_checkpoint(tmp_path).plain

    assert set(found) == {"layers.0.weight", "projection.linear.weight"}
    # a module of a backbone may be called so
    save_file({"layers.teacher_layer.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    assert set(open_checkpoint(tmp_path).plain) == {"layers.teacher_layer.weight"}
