"""Damage to an input that keeps its outer form, so that what lies behind the first parser is met.

Bytes of a JSON header, a pickle in a zip or a row among others are changed, and lengths, offsets
and checksums around them are made right again. It must not know the readers.
"""

import contextlib
import gzip
import io
import json
import pickletools
import random
import zipfile
from collections.abc import Callable
from typing import Any

Native = Callable[[bytes, int], bytes]
"""Changes bytes somewhere, at most to a length: libFuzzer's own, or one of a test."""

NATIVE_SHARE = 0.4
"""Of changes that do not look at what the bytes mean."""
MAX_DATA_BYTES = 4096
"""Tensors of a safetensors file that are written; longer ones are claimed only."""

LEAVES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 6, 2**31, 2**63, 10**30, 10**400, 0.5, 1e308, -1e308,
    float("nan"), float("inf"), "", " ", "x", "a", "0", "1e999", "a\nb", "\x00", "\u2028",
    "\ud800", "\U0001f600", "..", "/", "/dev/zero", "x" * 300, "a/" * 3000, "(a+)+$", "(", [], {},
    [[]], [None], [1], ["a"], ["a", None], {"a": 1}, {"": None}, [{"text": "a"}],
)  # fmt: skip
"""Values that stand for any other."""
TOKENS = (
    "null", "true", "-1", "1e999", "NaN", "9" * 400, "9" * 5000, "0x" + "f" * 4000, "[]", "{}",
    "[", "]", "{", "}", ":", ": ", ",", '"', "'", "\\", "\\u0000", "\\ud800", '\\"' * 50, "\t",
    "\n", "\r", "\x00", "\ufeff", "\u2028", "\u00e9", "x" * 300, "[" * 500, '{"a":' * 300,
    "- " * 200,
    "&a ", "*a", "<<: *a\n", "!!int ", "!!binary ", "!!timestamp ", "!!set ", "? ", "|", ">", "---",
    "2001-01-01", "12:30:45", "1_000", ".inf", ".nan", "~", "#", "%", "@", "`",
)  # fmt: skip
"""Pieces of text files."""
_REBUILD = ("tensor", "tensor_v2", "parameter", "parameter_with_state", "sparse_tensor", "qtensor",
            "meta_tensor_no_storage", "nested_tensor", "device_tensor_from_cpu_tensor",
            "wrapper_subclass")  # fmt: skip
GLOBALS = (
    *(f"torch._utils _rebuild_{name}" for name in _REBUILD),
    *(f"torch {name}" for name in ("FloatStorage", "BFloat16Storage", "LongStorage", "Size")),
    *(f"torch {name}" for name in ("device", "Tensor", "float32", "per_tensor_affine")),
    *("torch._tensor _rebuild_from_type_v2", "torch.serialization _get_layout"),
    *("torch.nn.parameter Parameter", "torch.storage UntypedStorage", "torch.storage TypedStorage"),
    *("collections OrderedDict", "collections Counter", "builtins bytearray", "builtins set"),
    *("builtins complex", "_codecs encode", "os system"),
    "deepspeed.runtime.fp16.loss_scaler LossScaler",
    "deepspeed.runtime.zero.config ZeroStageEnum",
)
"""Names that a pickle may ask for, and one that it must not."""


def mutate(name: str, content: bytes, rng: random.Random, native: Native, max_size: int) -> bytes:
    """Another content of a file.

    Args:
        name: of the file; its suffix says what the content means.
        content: as it was.
        rng: all choices but those of `native`.
        native: changes bytes anywhere.
        max_size: bytes that the result should have at most.
    """
    change = BY_SUFFIX.get("." + name.rsplit(".", 1)[-1])
    if change is None or rng.random() < 0.1:
        return native(content, max_size)
    try:
        return change(content, rng, native, max_size)
    except Exception:  # noqa: BLE001 - the content is not of its form; any bytes may change then
        return native(content, max_size)


def _json(content: bytes, rng: random.Random, native: Native, max_size: int) -> bytes:
    """Another value somewhere in a JSON text."""
    if rng.random() < NATIVE_SHARE:
        return _text(content, rng, native, max_size)
    return json.dumps(_other_value(json.loads(content), rng)).encode()


def _other_value(value: Any, rng: random.Random) -> Any:
    """A JSON value in which one node is another, is gone, or has another name."""
    root = [value]
    container: Any = root
    key: Any = 0
    while _keys(container[key]) and rng.random() < 0.9:
        container = container[key]
        key = rng.choice(_keys(container))
    kind = rng.randrange(8)
    if kind == 0 and container is not root:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[f"{key}{rng.choice(('s', ' ', '.x', chr(0xD800)))}"] = container.pop(key)
    elif kind == 2 and isinstance(container, dict):
        container[rng.choice(_keys(container))] = container[key]
    elif kind == 3 and isinstance(container, list):
        container.append(container[key])
    elif kind == 4 and type(container[key]) in (int, float):
        container[key] += rng.choice((-1, 1, 0.5, 10**6))
    elif kind == 5:
        container[key] = rng.choice(([container[key]], {"a": container[key]}))
    else:
        container[key] = rng.choice(LEAVES)
    return root[0]


def _keys(container: Any) -> list[Any]:
    """Keys or positions of what a value holds."""
    if isinstance(container, dict):
        return list(container)
    return list(range(len(container))) if isinstance(container, list) else []


def _json_lines(content: bytes, rng: random.Random, native: Native, max_size: int) -> bytes:
    """One line that is another, is gone, or stands twice."""
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    kind = rng.randrange(8)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(at, lines[at])
    else:
        lines[at] = _json(lines[at], rng, native, max_size)
    return b"\n".join(lines)


def _text(content: bytes, rng: random.Random, native: Native, max_size: int) -> bytes:
    """A token in the place of some bytes, or any change."""
    if rng.random() < NATIVE_SHARE:
        return native(content, max_size)
    start = rng.randrange(len(content) + 1)
    end = min(len(content), start + rng.choice((0, 0, 1, 3, 10)))
    return content[:start] + rng.choice(TOKENS).encode() + content[end:]


def _safetensors(content: bytes, rng: random.Random, native: Native, max_size: int) -> bytes:
    """Another header, with its length, and mostly with the bytes that its offsets ask for."""
    length = int.from_bytes(content[:8], "little")
    if length > len(content) - 8:
        raise ValueError("no header")
    header, data = content[8 : 8 + length], content[8 + length :]
    header = _json(header, rng, native, max_size)
    with contextlib.suppress(Exception):
        # the header may be of any form
        data = data.ljust(MAX_DATA_BYTES, b"\0")[: _end_of_data(header)]
    return len(header).to_bytes(8, "little") + header + data


def _end_of_data(header: bytes) -> int:
    """Where the last tensor of a header ends, at most `MAX_DATA_BYTES`."""
    entries = json.loads(header).values()
    ends = [entry["data_offsets"][1] for entry in entries if "data_offsets" in entry]
    return int(min(MAX_DATA_BYTES, max(0, *ends)))


def _torch_zip(content: bytes, rng: random.Random, native: Native, max_size: int) -> bytes:
    """Another pickle, or another record, in a zip that is whole."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    pickles = [name for name in records if name.endswith("/data.pkl")]
    name = rng.choice(pickles if pickles and rng.random() < 0.9 else list(records))
    if name in pickles:
        records[name] = _pickle(records[name], rng, native, max_size)
    else:
        records[name] = native(records[name], max_size)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for entry, record in records.items():
            info = zipfile.ZipInfo(entry)
            info.compress_type = zipfile.ZIP_DEFLATED if rng.random() < 0.02 else 0
            archive.writestr(info, record)
    return packed.getvalue()


def _pickle(content: bytes, rng: random.Random, native: Native, max_size: int) -> bytes:
    """One opcode that is another, is gone, or stands twice."""
    if rng.random() < NATIVE_SHARE / 2:
        return native(content, max_size)
    starts = [at for _, _, at in pickletools.genops(content) if at is not None]
    at = rng.randrange(len(starts))
    start, end = starts[at], [*starts, len(content)][at + 1]
    opcode = content[start:end]
    kind = rng.randrange(8)
    if kind == 0:
        other = b""
    elif kind == 1:
        other = opcode * 2
    elif kind == 2:
        other = opcode + _value(rng)
    else:
        other = _value(rng)
    return content[:start] + other + content[end:]


def _value(rng: random.Random) -> bytes:
    """Opcodes that push one value."""
    kind = rng.randrange(8)
    if kind == 0:
        return b"c%s\n" % rng.choice(GLOBALS).replace(" ", "\n").encode()
    if kind == 1:
        number = rng.choice((0, 1, 2, 3, 6, -1, 2**31 - 1, -(2**31), rng.randrange(1 << 16)))
        return b"J" + number.to_bytes(4, "little", signed=True)
    if kind == 2:
        return b"\x8a\x08" + rng.choice((2**40, 2**62, -(2**62))).to_bytes(8, "little", signed=True)
    if kind == 3:
        text = rng.choice(("", "a", "cpu", "meta", "cuda:0", "0", "storage", "zip", "\ud800"))
        raw = text.encode("utf-8", "surrogatepass")
        return b"X" + len(raw).to_bytes(4, "little") + raw
    if kind == 4:
        # a call of a name with one value
        name = rng.choice(GLOBALS).replace(" ", "\n").encode()
        return b"c" + name + b"\n" + _value(rng) + b"\x85R"
    if kind == 5:
        return b"h" + bytes([rng.randrange(12)])
    return rng.choice((b"N", b"\x88", b"\x89", b")", b"]", b"}", b"\x8f", b"(", b"t", b"Q", b"s",
                       b"u", b"\x85", b"\x86", b"R", b"b", b"G" + bytes(8)))  # fmt: skip


def _gzip(content: bytes, rng: random.Random, native: Native, max_size: int) -> bytes:
    """Other rows, packed again."""
    plain = _json_lines(gzip.decompress(content), rng, native, max_size)
    return gzip.compress(plain, mtime=0)


BY_SUFFIX: dict[str, Callable[[bytes, random.Random, Native, int], bytes]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".yaml": _text,
    ".txt": _text,
    ".csv": _text,
    ".tsv": _text,
    ".safetensors": _safetensors,
    ".pt": _torch_zip,
    ".gz": _gzip,
}
