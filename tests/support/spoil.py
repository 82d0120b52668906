"""Seeded damage to valid recipes and data files, as hands, editors, disks and enemies do it."""

import datetime
import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.data_files import write_beir, write_jsonl, write_qrels

RECIPE = """\
# a recipe with most of its sections
name: small
output_dir: out
seed: 3
model:
  path: model
  pooling: last
  dtype: float32
  lora: {rank: 4, alpha: 8.0, targets: [q_proj, v_proj]}
data:
  root: .
  schedule: alternate
  pattern: {ir: 1, sts: 1}
  query_max_tokens: 32
  sources:
    - {name: pairs, task: sts, path: pairs.jsonl, score_range: [0, 5]}
    - name: docs
      task: ir
      path: docs.jsonl
      query_instruction: "query: "
      weight: 2.0
tasks:
  ir: {global_batch_size: 4, positives: 1, negatives: 0, temperature: 0.05}
  sts: {global_batch_size: 4, weights: {pearson: 2, rank_kl: 5.0, pro: 0.5}}
train:
  max_steps: 2
  learning_rate: 1.0e-5
  betas: [0.9, 0.999]
engine: {deepspeed: zero3_fp32.json, max_tokens_per_chunk: 128, gather: auto}
eval:
  every_steps: 1
  sets:
    - {name: held_out, task: sts, path: pairs.jsonl}
checkpoint: {every_steps: 1, keep: 2}
log: {wandb_project: null}
"""

TOKENS = (
    *("null", "~", "true", "-1", "0", "1e999", ".nan", ".inf", "-.inf", "0x" + "f" * 4000),
    *("9" * 30, "9" * 5000, "1_000", "0o17", "12:30:45", "2001-99-99", "2001-01-01", "=", "<<"),
    *("[]", "{}", "[", "]", "{", "}", ":", ": ", "- ", "?", "|", ">", "&a", "*a", "*b", "%", "@"),
    *(
        "'",
        '"',
        '"\\0"',
        '"\\ud800"',
        '"\\x7f"',
        "`",
        "#",
        " #",
        "\t",
        "\n",
        "\r",
        "\x00",
        "\ufeff",
    ),
    *("!!python/object/apply:os.system [true]", "!!binary x", "!!timestamp x", "!!set {a}", "!x y"),
    *("!!int x", "!!float x", "!!bool x", "!!omap [a]", "!!null x", "!!pairs [a]", "!!merge x"),
    *(
        "~nobody/x",
        "/",
        "/dev/null",
        "/dev/zero",
        "/proc/self/mem",
        "..",
        ".",
        "x" * 5000,
        "a/" * 300,
    ),
    *(
        "**",
        "[a-",
        "*.jsonl",
        "model",
        "pairs.jsonl",
        "docs.jsonl",
        "hub: a/b",
        "é",
        "漢",
        "\u202e",
    ),
    *("[" * 2000, "{a: " * 300, "<<: *a", "? [a, b]\n: c", "---", "...", "- - - a"),
)
"""What is written into recipes."""

LEAVES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        3,
        7,
        10**6,
        10**12,
        2**63,
        10**400,
        1e-320,
        0.5,
        1e308,
        -0.0,
    ),
    *(
        float("nan"),
        float("inf"),
        "",
        " ",
        "x",
        "1e-5",
        "1e999",
        "true",
        "null",
        "auto",
        "all-linear",
    ),
    *(
        "pairs.jsonl",
        "docs.jsonl",
        "*.jsonl",
        "**",
        "[a-",
        ".",
        "..",
        "/",
        "~nobody/x",
        "~",
        "model",
    ),
    *(
        "/dev/null",
        "/dev/zero",
        "/proc/self/mem",
        "/proc/1/environ",
        "small.yaml",
        "a\0b",
        "\ud800",
    ),
    *("\x1b[31m", "a\nb", "\u202e", "漢", "x" * 5000, "a/" * 3000, "package:os", "package:yaml"),
    *(
        "package:../x",
        "package:" + "x" * 300,
        "{instruction}",
        "{text}{text}",
        "{text",
        "{0}{text}",
    ),
    *(
        "nobody/none",
        "nobody/none:x",
        "https://user:word@host/x",
        "hf_" + "a" * 34,
        "zero1_bf16.json",
    ),
    *([], {}, [[]], [None], [1, 2], [2, 1], ["a", "a"], {"a": 1}, {1: 2}, {None: 1}, {"ir": 0}),
    *({"ir": 10**30, "sts": 1}, {"margin": 0.1}, {"margin": "x"}, datetime.date(2001, 1, 1), b"\0"),
)
"""Values of all kinds for any key."""

ATOMS = (
    *("null", "true", "-1", "0", "1e999", "NaN", "Infinity", "-Infinity", "9" * 400, "9" * 5000),
    *(
        "[]",
        "{}",
        "[",
        "]",
        "{",
        "}",
        ":",
        ",",
        '"',
        "'",
        "\\",
        "\\u0000",
        "\\ud800",
        "\\udc00",
        "\\x",
    ),
    *(
        "\t",
        "\n",
        "\r",
        "\r\n",
        "\x00",
        "\ufeff",
        "\u2028",
        " ",
        "é",
        "漢",
        "\U0001f600",
        "x" * 5000,
    ),
    *("[" * 3000, '{"a":' * 3000, '""', '" "', "1", "5.0", "6", "a,b", '"a\nb"', "# ", "=1+1"),
)
"""What is written into data files."""
RAW = (b"\xff", b"\xfe", b"\x80", b"\xc3", b"\xed\xa0\x80", b"\x00", b"\xef\xbb\xbf", b"\x1a")
"""Bytes that are no UTF-8, or an odd place for it."""


def spoiled_recipe(seed: int, text: str = RECIPE) -> bytes:
    """The recipe with one to three mistakes."""
    rng = random.Random(f"recipe {seed}")
    if rng.random() < 0.6:
        return _other_leaves(text, rng).encode()
    content = text
    for _ in range(rng.randint(1, 3)):
        content = rng.choice(RECIPE_DAMAGE)(content, rng)
    raw = content.encode("utf-8", "surrogatepass")
    return spoiled_bytes(raw, rng) if rng.random() < 0.1 else raw


def _other_leaves(text: str, rng: random.Random) -> str:
    """Well-formed YAML in which one or two values are others, are gone, or have another name."""
    values = yaml.safe_load(text)
    for _ in range(rng.randint(1, 2)):
        container = values
        key = rng.choice(_keys(container))
        while _keys(container[key]) and rng.random() < 0.85:
            container = container[key]
            key = rng.choice(_keys(container))
        kind = rng.randrange(8)
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[f"{key}{rng.choice(('s', ' ', '.x', ''))}"] = container.pop(key)
        elif kind == 2 and isinstance(container, list):
            container.append(container[key])
        else:
            container[key] = rng.choice(LEAVES)
        if not values:
            break
    return str(yaml.safe_dump(values, allow_unicode=True))


def _keys(container: Any) -> list[Any]:
    """Keys or positions of what a value holds."""
    if isinstance(container, dict):
        return list(container)
    return list(range(len(container))) if isinstance(container, list) else []


def _replaced_value(text: str, rng: random.Random) -> str:
    """Another value after some colon."""
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    key, colon, value = lines[at].partition(":")
    parts = value.split(",")
    part = rng.randrange(len(parts))
    inner_key, inner_colon, _ = parts[part].rpartition(":")
    parts[part] = f"{inner_key}{inner_colon} {rng.choice(TOKENS)}"
    lines[at] = key + colon + ",".join(parts)
    return "\n".join(lines)


def _moved_line(text: str, rng: random.Random) -> str:
    """A line removed, repeated, or put elsewhere."""
    lines = text.split("\n")
    line = lines.pop(rng.randrange(len(lines)))
    for _ in range(rng.randint(0, 2)):
        lines.insert(rng.randrange(len(lines) + 1), line)
    return "\n".join(lines)


def _indented(text: str, rng: random.Random) -> str:
    """A line further in or out."""
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    width = len(lines[at]) - len(lines[at].lstrip())
    lines[at] = " " * max(0, width + rng.choice((-2, -1, 1, 2, 4))) + lines[at].lstrip()
    return "\n".join(lines)


def _inserted(text: str, rng: random.Random) -> str:
    """A token anywhere."""
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice(TOKENS) + text[at:]


def _misspelt(text: str, rng: random.Random) -> str:
    """A character lost, doubled or changed."""
    if not text:
        return text
    at = rng.randrange(len(text))
    return text[:at] + rng.choice(("", text[at] * 2, chr(rng.randrange(32, 127)))) + text[at + 1 :]


def _cut(text: str, rng: random.Random) -> str:
    """Only the beginning."""
    return text[: rng.randrange(len(text) + 1)]


RECIPE_DAMAGE: tuple[Callable[[str, random.Random], str], ...] = (
    *(_replaced_value, _replaced_value, _replaced_value),
    *(_moved_line, _indented, _inserted, _misspelt, _misspelt, _cut),
)


def spoiled_bytes(raw: bytes, rng: random.Random) -> bytes:
    """A file with one to three mistakes."""
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(raw) + 1)
        end = min(len(raw), start + rng.choice((0, 1, 1, 5, 40)))
        kind = rng.randrange(6)
        if kind == 0:
            raw = raw[:start] + rng.choice(ATOMS).encode() + raw[end:]
        elif kind == 1:
            raw = raw[:start] + rng.choice(RAW) + raw[end:]
        elif kind == 2:
            raw = raw[:start] + raw[end:]
        elif kind == 3:
            raw = raw[:end] + raw[start:]
        elif kind == 4 and raw:
            at = rng.randrange(len(raw))
            raw = raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :]
        elif rng.random() < 0.3:
            raw = raw[:start]
    return raw


def spoiled_json_lines(raw: bytes, rng: random.Random) -> bytes:
    """A JSONL file in which one value of one row is another, or a field is lost or renamed."""
    rows = [json.loads(line) for line in raw.splitlines()]
    row = rng.choice(rows)
    key = rng.choice(list(row))
    kind = rng.randrange(4)
    if kind == 0:
        del row[key]
    elif kind == 1:
        row[key + rng.choice((" ", "s", "\u0000"))] = row.pop(key)
    elif kind == 2 and isinstance(row[key], list):
        row[key].append(rng.choice(VALUES))
    else:
        row[key] = rng.choice(VALUES)
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        6,
        1e308,
        float("nan"),
        float("inf"),
        10**400,
        "",
        " ",
        "\u2028",
        "\ud800",
    ),
    *(
        "\x00",
        "x" * 5000,
        [],
        {},
        [[]],
        [None],
        [""],
        [1],
        ["a", None],
        {"a": 1},
        ["a", ["b"]],
        "3.5",
    ),
    [{"text": "a"}],
)


@dataclass(frozen=True)
class Original:
    """A valid data file, or the part of a folder that is malformed."""

    name: str
    task: str
    write: Callable[[Path], Path]
    """Writes everything into a folder; returns what a recipe would name."""
    victim: str
    """The file that is malformed."""
    json_lines: bool = False
    """Whether its rows can be malformed one by one."""


def _ir_rows() -> list[dict[str, Any]]:
    return [
        {"query": f"q {n}", "positives": [f"p {n}", "é"], "negatives": [f"n {n}"]} for n in range(9)
    ]


def _sts_rows() -> list[dict[str, Any]]:
    return [{"text1": f"a {n}", "text2": f"漢 {n}", "score": n / 2} for n in range(9)]


def _delimited(delimiter: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        lines = ["text1,text2,score", *(f'a {n},"b, ""{n}""\nc",{n / 2}' for n in range(9))]
        path = folder / ("x.csv" if delimiter == "," else "x.tsv")
        path.write_text("".join(f"{line}\n" for line in lines).replace(",", delimiter))
        return path

    return write


def _columnar(kind: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = folder / f"x.{kind}"
        table = pa.Table.from_pylist(_sts_rows())
        if kind == "parquet":
            pq.write_table(table, path)
        else:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
                out.write_table(table)
        return path

    return write


def _json_array(folder: Path) -> Path:
    (folder / "x.json").write_text(json.dumps(_ir_rows(), indent=1))
    return folder / "x.json"


def _packed(folder: Path) -> Path:
    plain = write_jsonl(folder / "plain" / "x.jsonl", _ir_rows())
    (folder / "x.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
    return folder / "x.jsonl.gz"


def _beir(folder: Path) -> Path:
    documents = {f"d{n}": f"text {n}" for n in range(6)}
    queries = {f"q{n}": f"query {n}" for n in range(4)}
    write_beir(folder / "beir", corpus=documents, queries=queries)
    write_qrels(folder / "beir", "train", [(f"q{n}", f"d{n}", 1) for n in range(4)])
    mined = [{"query_id": f"q{n}", "negatives": ["d4", "d5"]} for n in range(4)]
    write_jsonl(folder / "beir" / "hard_negatives.train.jsonl", mined)
    return folder / "beir"


ORIGINALS = (
    Original("ir", "ir", lambda f: write_jsonl(f / "x.jsonl", _ir_rows()), "x.jsonl", True),
    Original("sts", "sts", lambda f: write_jsonl(f / "x.jsonl", _sts_rows()), "x.jsonl", True),
    Original("array", "ir", _json_array, "x.json"),
    Original("csv", "sts", _delimited(","), "x.csv"),
    Original("tsv", "sts", _delimited("\t"), "x.tsv"),
    Original("packed", "ir", _packed, "x.jsonl.gz"),
    Original("corpus", "ir", _beir, "beir/corpus.jsonl", True),
    Original("queries", "ir", _beir, "beir/queries.jsonl", True),
    Original("qrels", "ir", _beir, "beir/qrels/train.tsv"),
    Original("mined", "ir", _beir, "beir/hard_negatives.train.jsonl", True),
    Original("parquet", "sts", _columnar("parquet"), "x.parquet"),
    Original("arrow", "sts", _columnar("arrow"), "x.arrow"),
)


def spoil_data(seed: int, folder: Path) -> tuple[Original, Path]:
    """Write an original into an empty folder and damage one of its files."""
    rng = random.Random(f"data {seed}")
    original = ORIGINALS[seed % len(ORIGINALS)]
    path = original.write(folder)
    victim = folder / original.victim
    raw = victim.read_bytes()
    by_row = original.json_lines and rng.random() < 0.6
    victim.write_bytes(spoiled_json_lines(raw, rng) if by_row else spoiled_bytes(raw, rng))
    return original, path
