"""Checkpoints that a stranger made: each file that is odd ends in one message, at once."""

import io
import json
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum

from fuzzing.seeds import safetensors, torch_file
from trainer.checkpoint import manifest, zero_format
from trainer.checkpoint.deepspeed_files import CheckpointFiles
from trainer.checkpoint.lora_deltas import LoraSettings, settings_from_peft
from trainer.checkpoint.open import base_fingerprint, fingerprint, open_checkpoint
from trainer.checkpoint.unpickle import load_pickled, refuse_code
from trainer.checkpoint.zero_files import find_files
from trainer.errors import CheckpointError

LONG = "x" * 300
"""No file system takes a name of this length, and pathlib raises where it is looked for."""
ENTRY = {"size": 1, "sha256": "0" * 64}
MANIFEST: dict[str, Any] = {
    "format": 1, "step": 2, "world_size": 1, "recipe": {}, "sources": {}, "versions": {},
    "files": {},
}  # fmt: skip


def refused(call: Callable[[], object], match: str) -> None:
    """The call ends in a message that says what was expected."""
    with pytest.raises(CheckpointError, match=match) as caught:
        call()
    assert "; expected " in str(caught.value)


@pytest.mark.parametrize("read", [manifest.read_manifest, zero_format.read_manifest])
@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, "[]", "5", '{"format": 1, "files": 5}', '{"format": 1, "files": {"a": 5}}'],
)
def test_a_manifest_of_another_form(
    read: Callable[[Path], object], content: str, tmp_path: Path
) -> None:
    (tmp_path / "manifest.json").write_text(content)
    refused(lambda: read(tmp_path), r"manifest\.json: ")


@pytest.mark.parametrize(
    "changed",
    [
        {"files": {"a": {"size": float("inf")}}},
        {"recipe": [1]},
        {"base": "x"},
        {"files": {LONG: {"size": 1}}},
    ],
)
def test_a_manifest_of_other_values(changed: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST | changed))
    refused(lambda: zero_format.read_manifest(tmp_path), str(tmp_path))


def test_a_manifest_that_names_a_file_of_an_impossible_name(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST | {"files": {LONG: ENTRY}}))
    found = manifest.read_manifest(tmp_path)
    refused(lambda: manifest.verify(tmp_path, found, found.files), "missing; expected 1 bytes")


def test_a_changed_file_is_named_with_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST | {"files": {"a": ENTRY}}))
    found = manifest.read_manifest(tmp_path)
    refused(lambda: manifest.verify(tmp_path, found, found.files), "a: content changed; expected")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([], "expected a JSON object"),
        (5, "expected a JSON object"),
        ({"weight_map": {"a": LONG}}, "expected a file beside it"),
        ({"weight_map": {"a": "b\0c"}}, "expected a file beside it"),
    ],
)
def test_an_index_of_another_form(content: object, match: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
    refused(lambda: open_checkpoint(tmp_path), match)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([], "expected a list of modules"),
        ({"a": 1}, "expected a list of modules"),
        ([5], "expected a list of modules"),
        ([{"path": ""}, 5], "expected a list of modules"),
        ([{"path": LONG}], "weights = none"),
        ([{"path": "../x"}], "expected a folder inside"),
        ([{"path": ""}, {"path": "/x"}], "expected a folder inside"),
    ],
)
def test_a_list_of_modules_of_another_form(content: object, match: str, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(json.dumps(content))
    refused(lambda: open_checkpoint(tmp_path), match)


@pytest.mark.parametrize("entry", [{"data_offsets": [0, 1e999]}, {"shape": [1e999]}])
def test_a_safetensors_header_with_an_infinite_number(
    entry: dict[str, Any], tmp_path: Path
) -> None:
    whole = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"a": whole | entry}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(4)
    (tmp_path / "model.safetensors").write_bytes(content)
    refused(lambda: open_checkpoint(tmp_path), "entry 'a'")


def test_a_tensor_whose_name_is_no_unicode(tmp_path: Path) -> None:
    header = json.dumps({"\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(4)
    (tmp_path / "model.safetensors").write_bytes(content)
    refused(
        lambda: open_checkpoint(tmp_path), r"tensor = '\\ud800'; expected a name in valid Unicode"
    )


def test_a_parameter_whose_name_is_no_unicode(tmp_path: Path) -> None:
    model = model_state() | {"param_shapes": [{"\ud800": torch.Size([6])}], "shared_params": {}}
    write_zero(tmp_path, model, optimizer_state())
    refused(lambda: open_checkpoint(tmp_path), "expected a name in valid Unicode")


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"lora_alpha": None}, "lora_alpha = None; expected a finite number"),
        ({"lora_alpha": 1e999}, "lora_alpha = inf; expected a finite number"),
        ({"lora_alpha": 10**400}, "lora_alpha = 10"),
        ({"alpha_pattern": [1]}, "alpha_pattern = "),
        ({"alpha_pattern": {"q": "x"}}, "alpha_pattern = 'x'; expected a finite number"),
        ({"alpha_pattern": {"(": 1}}, r"alpha_pattern = '\('; expected a module's name"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "expected a module's name"),
        ({"alpha_pattern": {"a?" * 50 + "a" * 50: 1}}, "expected a module's name"),
        ({"alpha_pattern": {"a" * 501: 1}}, "expected a module's name"),
    ],
)
def test_settings_of_an_adapter_of_other_values(
    changed: dict[str, Any], match: str, tmp_path: Path
) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 1} | changed))
    refused(lambda: settings_from_peft(path), match)


def test_settings_that_are_no_object(tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text("[" * 100_000)
    refused(lambda: settings_from_peft(path), "not JSON")
    path.write_text("[]")
    refused(lambda: settings_from_peft(path), "expected a JSON object")


def test_expressions_that_people_write_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    alphas = {"q_proj": 2, r"(model\.)?layers\.\d+\.v_proj": 4, r"^model\..*_proj$": 8}
    path.write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 1, "alpha_pattern": alphas}))
    settings = settings_from_peft(path)
    assert settings.scale("layers.0.q_proj", 1) == 2
    assert settings.scale("layers.10.v_proj", 1) == 4
    assert settings.scale("model.layers.0.o_proj", 1) == 8
    assert settings.scale("layers.0.o_proj", 1) == 1
    refused(lambda: settings.scale(LONG, 1), "a name of 300 characters")
    assert LoraSettings(path=path, alpha=1).scale(LONG, 1) == 1


def test_an_adapter_of_rank_zero(tmp_path: Path) -> None:
    from trainer.checkpoint.lora_deltas import adapted

    config = {"peft_type": "LORA", "lora_alpha": 1}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    factors = {"q.lora_A.weight": (0, 4), "q.lora_B.weight": (3, 0)}
    (tmp_path / "adapter_model.safetensors").write_bytes(safetensors(factors))
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").write_bytes(safetensors({"q.weight": (3, 4)}))
    source, base = open_checkpoint(tmp_path), open_checkpoint(tmp_path / "base")
    assert source.lora is not None
    lora = source.lora
    refused(lambda: adapted(base.plain, source.adapters, lora), "expected a rank of at least 1")


def zipped(pickled: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    """A file as of `torch.save` with this pickle and one stored float."""
    sink = io.BytesIO()
    records = {"data.pkl": pickled, "version": b"3\n", "byteorder": b"little", "data/0": bytes(4)}
    with zipfile.ZipFile(sink, "w") as archive:
        for name, record in records.items():
            info = zipfile.ZipInfo(f"archive/{name}")
            info.compress_type = method
            archive.writestr(info, record)
    return sink.getvalue()


def with_metadata(metadata: bytes) -> bytes:
    """A file of one tensor whose pickle gives it metadata: opcodes that push one value."""
    with zipfile.ZipFile(io.BytesIO(torch_file({"a": torch.zeros(1)}))) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        pickled = archive.read(name)
    at = pickled.rindex(b"tq")
    assert pickled[at:].startswith(b"tq"), "the tuple of the tensor's arguments"
    return zipped(pickled[:at] + metadata + pickled[at:])


def called(name: bytes, *values: bytes) -> bytes:
    """A file of a dict whose only value comes of a call: the name, and opcodes of its arguments."""
    return zipped(b"\x80\x02}K\x01c" + name + b"\n(" + b"".join(values) + b"tRs.")


GIB = b"J\x00\x00\x00\x40"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        # torch answers the first with an AssertionError, the second with a struct.error
        (with_metadata(b"X\x01\x00\x00\x00x"), "unreadable"),
        (zipped(b"\x80\x02X\x01"), "unreadable"),
        (called(b"builtins\nbytearray", GIB), "bytearray; expected tensors"),
        (called(b"__builtin__\nbytearray", GIB), "bytearray; expected tensors"),
        (called(b"_codecs\nencode", b"X\x01\x00\x00\x00a", b"X\x05\x00\x00\x00ascii"), "= encode"),
        (zipped(b"\x80\x02}.", zipfile.ZIP_DEFLATED), "compressed"),
        (b"", "unreadable"),
    ],
)
def test_a_pickle_of_another_form(content: bytes, match: str, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    refused(lambda: load_pickled(path), match)


class Named:
    """Pickled as Python up to 3.11.3 pickles a member of an enum: by `getattr`."""

    def __init__(self, owner: object, name: str) -> None:
        self.call = (owner, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, self.call


def test_members_of_enums_are_read_as_older_pythons_write_them(tmp_path: Path) -> None:
    state = {"zero_stage": Named(ZeroStageEnum, "weights"), "step": 3}
    (tmp_path / "a.pt").write_bytes(torch_file(state))
    assert load_pickled(tmp_path / "a.pt")["step"] == 3
    # nothing is looked up, so no way leads from a class to what it can reach
    found = load_pickled_of(Named(LossScaler, "__init__"), tmp_path)
    assert not callable(found)
    assert not hasattr(found, "__globals__")
    # and a run, whose files are loaded by DeepSpeed, writes none
    CheckpointFiles().save({"stage": ZeroStageEnum(3)}, str(tmp_path / "own.pt"))
    refuse_code(tmp_path / "own.pt")
    assert CheckpointFiles().load(str(tmp_path / "own.pt")) == {"stage": ZeroStageEnum.weights}
    refused(lambda: refuse_code(tmp_path / "a.pt"), r"pickled names = builtins\.getattr; ")


def load_pickled_of(value: object, folder: Path) -> object:
    """What a value of a file becomes."""
    (folder / "value.pt").write_bytes(torch_file({"value": value}))
    return load_pickled(folder / "value.pt")["value"]


def test_a_latest_that_is_no_text(tmp_path: Path) -> None:
    for content in (b"\xff\xfe", LONG.encode(), b"\0", b"x" * 100_000):
        (tmp_path / "latest").write_bytes(content)
        refused(lambda: open_checkpoint(tmp_path), "expected the name of a folder beside it")


def model_state() -> dict[str, Any]:
    """Of one rank of stage 3: a [2, 3], an empty e [0], frozen c [2] and a buffer."""
    return {
        "dp_world_size": 1, "global_steps": 2, "module": {"n": torch.zeros(1)},
        "buffer_names": ["n"], "shared_params": {"tied": "a"},
        "param_shapes": [OrderedDict(a=torch.Size([2, 3]), e=torch.Size([0]))],
        "frozen_param_shapes": {"c": torch.Size([2])},
        "frozen_param_fragments": {"c": torch.zeros(2)},
    }  # fmt: skip


def optimizer_state() -> dict[str, Any]:
    """Of the same rank."""
    moments = {"step": torch.tensor(2.0), "exp_avg": torch.zeros(6)}
    return {
        "zero_stage": 3, "partition_count": 1, "fp32_flat_groups": [torch.zeros(6)],
        "optimizer_state_dict": {"state": {0: moments}},
    }  # fmt: skip


def joined_state() -> dict[str, Any]:
    """Of one rank of stage 2."""
    moments = {"step": torch.tensor(2.0), "exp_avg": torch.zeros(6)}
    return {
        "zero_stage": 2, "partition_count": [1], "param_alignment_paddings": [[0, 0]],
        "single_partition_of_fp32_groups": [torch.zeros(6)],
        "base_optimizer_state": {"state": {0: moments}},
    }  # fmt: skip


def write_zero(folder: Path, model: Any, optimizer: Any) -> None:
    name = "zero_pp_rank_0_mp_rank_00_{}_states.pt"
    (folder / name.format("model")).write_bytes(torch_file(model))
    state = {"optimizer_state_dict": optimizer}
    (folder / name.format("optim")).write_bytes(torch_file(state))


@pytest.mark.parametrize("optimizer", [optimizer_state(), joined_state()])
def test_an_empty_parameter_is_read(optimizer: dict[str, Any], tmp_path: Path) -> None:
    write_zero(tmp_path, model_state(), optimizer)
    source = open_checkpoint(tmp_path)
    assert {name: tuple(one.shape) for name, one in source.plain.items()}["e"] == (0,)
    assert base_fingerprint(source) != fingerprint({})
    assert zero_format.read_progress(tmp_path).scalars == {"step": 2.0}


EXPANDED = torch.zeros(1).expand(1 << 20, 1 << 20)
"""4 bytes on disk, 4 TB once copied."""


@pytest.mark.parametrize(
    "changed",
    [
        {"dp_world_size": "x"},
        {"dp_world_size": float("inf")},
        {"dp_world_size": 1 << 62},
        {"global_steps": []},
        {"module": 5},
        {"module": {"n": 5}},
        {"module": {"n": EXPANDED}},
        {"module": {"n": torch.zeros(1, device="meta")}},
        {"module": {"n": torch.zeros(1).to_sparse()}},
        {"buffer_names": 5},
        {"shared_params": [1]},
        {"shared_params": {"tied": "nothing"}},
        {"param_shapes": 5},
        {"param_shapes": [5]},
        {"param_shapes": [{"a": 5}]},
        {"param_shapes": [{"a": [2.5]}]},
        {"param_shapes": [{"a": [-6]}]},
        {"param_shapes": [{1: [6]}]},
        {"frozen_param_shapes": 5},
        {"frozen_param_fragments": {"c": EXPANDED}},
        {"frozen_param_fragments": {"d": 1}},
        {"frozen_param_fragments": {"c": [1]}},
    ],
    ids=lambda changed: str(*changed),
)
def test_a_model_state_of_another_form(changed: dict[str, Any], tmp_path: Path) -> None:
    write_zero(tmp_path, model_state() | changed, optimizer_state())
    refused(lambda: zero_format.read_zero(tmp_path), str(tmp_path))


@pytest.mark.parametrize(
    "changed",
    [
        {"partition_count": []},
        {"partition_count": 1 << 62},
        {"partition_count": None},
        {"fp32_flat_groups": 5},
        {"fp32_flat_groups": [5]},
        {"fp32_flat_groups": [EXPANDED]},
        {"optimizer_state_dict": []},
        {"optimizer_state_dict": {"state": {0: 5}}},
        {"optimizer_state_dict": {"state": {0: {"step": "x"}}}},
        {"optimizer_state_dict": {"state": {0: {"step": 1, "exp_avg": EXPANDED}}}},
    ],
    ids=lambda changed: str(*changed),
)
def test_an_optimizer_state_of_another_form(changed: dict[str, Any], tmp_path: Path) -> None:
    write_zero(tmp_path, model_state(), optimizer_state() | changed)

    def read() -> None:
        zero_format.read_zero(tmp_path)
        zero_format.read_progress(tmp_path)

    refused(read, str(tmp_path))


@pytest.mark.parametrize("gaps", [5, [5], [[0, -1]], [["x", 0]], [[0.5, 0]], [[0]]])
def test_paddings_of_another_form(gaps: object, tmp_path: Path) -> None:
    write_zero(tmp_path, model_state(), joined_state() | {"param_alignment_paddings": gaps})
    refused(lambda: zero_format.read_zero(tmp_path), str(tmp_path))


def test_two_ranks_of_different_dtypes(tmp_path: Path) -> None:
    for rank, dtype in enumerate((torch.float32, torch.bfloat16)):
        name = f"zero_pp_rank_{rank}_mp_rank_00_{{}}_states.pt"
        model = model_state() | {"dp_world_size": 2, "frozen_param_shapes": None}
        state = optimizer_state() | {
            "partition_count": 2, "fp32_flat_groups": [torch.zeros(3, dtype=dtype)],
        }  # fmt: skip
        (tmp_path / name.format("model")).write_bytes(torch_file(model))
        (tmp_path / name.format("optim")).write_bytes(torch_file({"optimizer_state_dict": state}))
    refused(lambda: zero_format.read_zero(tmp_path), "6 elements of torch.bfloat16, torch.float32")


def test_a_file_named_as_of_a_rank_without_end(tmp_path: Path) -> None:
    write_zero(tmp_path, model_state(), optimizer_state())
    (tmp_path / f"zero_pp_rank_{'9' * 18}_mp_rank_00_optim_states.pt").touch()
    refused(lambda: find_files(tmp_path), "zero_pp_rank_1_mp_rank_00_optim_states.pt")


def test_a_manifest_whose_recipe_has_no_model(tmp_path: Path) -> None:
    factors = {"q.lora_A.weight": torch.Size([1, 2]), "q.lora_B.weight": torch.Size([2, 1])}
    model = model_state() | {"param_shapes": [factors], "frozen_param_shapes": None}
    model |= {"shared_params": {}}
    write_zero(tmp_path, model, optimizer_state() | {"fp32_flat_groups": [torch.zeros(4)]})
    files = {file.name: {"size": file.stat().st_size} for file in tmp_path.glob("*.pt")}
    for recipe in ({"model": 5}, {"model": {"lora": 5}}, {"model": {"lora": {"alpha": []}}}):
        content = {"files": files, "recipe": recipe}
        (tmp_path / "manifest.json").write_text(json.dumps(content))
        refused(lambda: open_checkpoint(tmp_path), str(tmp_path))
