"""Every format and every kind of file gives the same records, and names its malformed rows."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tests.support.data_files import write_jsonl
from trainer.data import files, table_scan
from trainer.data.records import IrRecord, StsRecord
from trainer.data.sources import open_source
from trainer.errors import DataError
from trainer.recipe.schema import SourceRecipe, Task

IR = [
    IrRecord(query="who?", positives=("Title me", "you"), negatives=("him", "her")),
    IrRecord(query='what\u00fc, "so"?\nyes', positives=("this",)),
]
STS = [StsRecord(text1="a b", text2="c\td", score=0.5), StsRecord(text1="e", text2="f", score=1.0)]
ONE_POSITIVE = [
    IrRecord(query="who?", positives=("me",), negatives=("him", "her")),
    IrRecord(query='what\u00fc, "so"?\nyes', positives=("this",), negatives=("that", "it")),
]


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """Caches of this test alone."""
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "cache"))
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    datasets.disable_progress_bars()


def records_of(path: object, task: Task, **changes: object) -> list[object]:
    source = open_source(SourceRecipe(name="set", task=task, path=str(path), **changes), ".")
    return [source.record(row) for row in range(len(source))]


IR_FORMATS = {
    "records": [
        {"query": IR[0].query, "positives": ["Title me", "you"], "negatives": ["him", "her"]},
        {"query": IR[1].query, "positives": ["this"], "negatives": []},
    ],
    "codiemb": [
        {
            "task_type": "ir",
            "query": ["find", "", IR[0].query],
            "positives": [["", "Title ", "me"], ["", "", "you"]],
            "negatives": [["", "", "him"], ["", "", "her"]],
            "positive_scores": [1.0, 1.0],
        },
        {
            "task_type": "ir",
            "query": ["find", "", IR[1].query],
            "positives": [["", "", "this"]],
            "negatives": [],
            "positive_scores": [1.0],
        },
    ],
    "flag-embedding": [
        {
            "query": IR[0].query,
            "pos": ["Title me", "you"],
            "neg": ["him", "her"],
            "pos_scores": None,
        },
        {"query": IR[1].query, "pos": ["this"], "neg": [], "prompt": "find"},
    ],
    "tevatron": [
        {
            "query_id": "1",
            "query": IR[0].query,
            "positive_passages": [
                {"docid": "1", "title": "Title", "text": "me"},
                {"docid": "2", "title": "", "text": "you"},
            ],
            "negative_passages": [{"docid": "3", "text": "him"}, {"title": None, "text": "her"}],
        },
        {
            "query_id": "2",
            "query": IR[1].query,
            "positive_passages": [{"docid": "4", "title": "", "text": "this"}],
            "negative_passages": [],
        },
    ],
}
STS_FORMATS = {
    "records": [
        {"text1": "a b", "text2": "c\td", "score": 0.5},
        {"text1": "e", "text2": "f", "score": 1},
    ],
    "codiemb": [
        {
            "task_type": "sts",
            "query": ["same?", "a ", "b"],
            "positives": [["same?", "", "c\td"]],
            "negatives": [],
            "positive_scores": [0.5],
            "negative_scores": [],
        },
        {
            "task_type": "sts",
            "query": ["same?", "", "e"],
            "positives": [["same?", "", "f"]],
            "positive_scores": [1],
        },
    ],
    "sentence-transformers": [
        {"sentence1": "a b", "sentence2": "c\td", "score": 0.5},
        {"sentence1": "e", "sentence2": "f", "score": 1.0},
    ],
}
TRIPLETS = [
    {"anchor": record.query, "positive": record.positives[0]}
    | {f"negative_{i}": text for i, text in enumerate(record.negatives, 1)}
    for record in ONE_POSITIVE
]


@pytest.mark.parametrize("name", IR_FORMATS)
@pytest.mark.parametrize("is_named", [False, True])
def test_every_ir_format_gives_the_same_records(tmp_path, name, is_named):
    path = write_jsonl(tmp_path / "a.jsonl", IR_FORMATS[name])
    assert records_of(path, "ir", format=name if is_named else None) == IR


@pytest.mark.parametrize("name", STS_FORMATS)
@pytest.mark.parametrize("is_named", [False, True])
def test_every_sts_format_gives_the_same_records(tmp_path, name, is_named):
    path = write_jsonl(tmp_path / "a.jsonl", STS_FORMATS[name])
    assert records_of(path, "sts", format=name if is_named else None) == STS


def test_triplets_have_one_positive_and_any_number_of_negatives(tmp_path):
    assert records_of(write_jsonl(tmp_path / "a.jsonl", TRIPLETS), "ir") == ONE_POSITIVE
    pairs = [{"anchor": "q", "positive": "p"}, {"anchor": "r", "positive": "s", "negative": "n"}]
    assert records_of(write_jsonl(tmp_path / "b.jsonl", pairs), "ir") == [
        IrRecord(query="q", positives=("p",)),
        IrRecord(query="r", positives=("s",), negatives=("n",)),
    ]


def quoted(value: object) -> str:
    return '"' + str(value).replace('"', '""') + '"'


def write_as(kind: str, folder: Path, rows: list[dict[str, object]]) -> Path:
    """The rows in a file of some kind."""
    path = folder / f"rows{kind}"
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = pyarrow.Table.from_pylist(rows)
    if kind == ".json":
        path.write_text(json.dumps(rows))
    elif kind == ".jsonl.gz":
        path.write_bytes(gzip.compress(lines))
    elif kind == ".jsonl.zst":
        with pyarrow.output_stream(str(path), compression="zstd") as stream:
            stream.write(lines)
    elif kind in (".csv", ".tsv"):
        between = "," if kind == ".csv" else "\t"
        body = [between.join(rows[0]), *(between.join(map(quoted, row.values())) for row in rows)]
        path.write_text("\r\n".join(body), newline="")
    elif kind == ".parquet":
        pyarrow.parquet.write_table(table, path)
    elif kind == ".arrow":
        with (
            pyarrow.OSFile(str(path), "wb") as sink,
            pyarrow.ipc.new_stream(sink, table.schema) as out,
        ):
            out.write_table(table)
    elif kind == ".file.arrow":
        with (
            pyarrow.OSFile(str(path), "wb") as sink,
            pyarrow.ipc.new_file(sink, table.schema) as out,
        ):
            out.write_table(table)
    else:
        path.write_bytes(lines)
    return path


FLAT = [
    ".jsonl",
    ".json",
    ".jsonl.gz",
    ".jsonl.zst",
    ".csv",
    ".tsv",
    ".parquet",
    ".arrow",
    ".file.arrow",
]
NESTED = [kind for kind in FLAT if kind not in (".csv", ".tsv")]


@pytest.mark.parametrize("kind", FLAT)
def test_every_kind_of_file_gives_the_same_flat_records(tmp_path, kind):
    path = write_as(kind, tmp_path, STS_FORMATS["sentence-transformers"])
    assert records_of(path, "sts") == STS
    assert records_of(write_as(kind, tmp_path, TRIPLETS), "ir") == ONE_POSITIVE


@pytest.mark.parametrize("kind", NESTED)
def test_every_kind_of_file_gives_the_same_nested_records(tmp_path, kind):
    for name, rows in IR_FORMATS.items():
        (tmp_path / name).mkdir()
        assert records_of(write_as(kind, tmp_path / name, rows), "ir") == IR


@pytest.mark.parametrize("kind", FLAT)
def test_every_kind_of_file_names_the_spoiled_row(tmp_path, kind):
    rows = [{"text1": "a", "text2": "b", "score": 0.5}] * 3 + [
        {"text1": "", "text2": "b", "score": 0.5}
    ]
    path = write_as(kind, tmp_path, rows)
    # a header and a row whose text takes no extra line come before the fourth row
    line = {".csv": 5, ".tsv": 5, ".json": 1}.get(kind, 4)
    with pytest.raises(DataError, match=rf'rows{kind}:{line}: text1 = ""; expected a text'):
        records_of(path, "sts")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("text1,text2,score\na,b,high\n", r'a\.csv:2: score = "high"; expected a number'),
        ("text1,text2,score\na,b,1\n\nc,d\n", r"a\.csv:4: row = 2 fields; expected 3: text1"),
        ("text1,text2,score\na,b,1\nc,d,1,e\n", r"a\.csv:3: row = 4 fields; expected 3"),
        ('text1,text2,score\n"a\nb",b,1\n"c,d\ne', r"a\.csv:4: row = .*expected CSV \(unexp"),
        ('text1,text2,score\n"a\nb",b,1\n"c,d,1\ne,f,1', r"a\.csv: lines 4 to 5 = .*; expected li"),
        ('text1,text2,score\n"a"x,b,1\n', r"a\.csv:2: row = .*expected CSV"),
        ("text1,text1,score\na,b,1\n", r"a\.csv:1: header = .*; expected column names, each once"),
        ("text1,,score\na,b,1\n", r"a\.csv:1: header = .*; expected column names, each once"),
        ("text1,text2,score\n", r"a\.csv: rows = 0; expected at least one row"),
        ("text1,text2,score\na,b,nan\n", r"a\.csv:2: score = nan; expected a finite number"),
    ],
)
def test_spoiled_csv_is_named(tmp_path, body, message):
    (tmp_path / "a.csv").write_text(body)
    with pytest.raises(DataError, match=message):
        records_of(tmp_path / "a.csv", "sts")


SPOILED = {
    "two instructions": ("codiemb", {"query": ["find", "who?"]}, r"query = .*; expected a triple"),
    "no triple": ("codiemb", {"positives": ["p"]}, r'positives\[0\] = "p"; expected a triple'),
    "empty text": ("codiemb", {"query": ["find", "", ""]}, r'query\[2\] = ""; expected a text'),
    "number as instance": ("codiemb", {"query": ["", 1, "q"]}, r"query\[1\] = 1; expected a text"),
    "release without positives": (
        "codiemb",
        {"positives": []},
        r"positives = \[\]; expected at le",
    ),
    "other task": ("codiemb", {"task_type": "sts"}, r'task_type = "sts"; expected "ir"'),
    "own other task": ("records", {"task": "sts"}, r'task = "sts"; expected "ir"'),
    "no pos": ("flag-embedding", {"pos": []}, r"pos = \[\]; expected at least one text"),
    "text as neg": ("flag-embedding", {"neg": "n"}, r'neg = "n"; expected a list'),
    "no passages": (
        "tevatron",
        {"positive_passages": []},
        r"positive_passages = \[\]; expected at",
    ),
    "text as passage": (
        "tevatron",
        {"negative_passages": ["x"]},
        r'negative_passages\[0\] = "x"; exp',
    ),
    "passage without text": (
        "tevatron",
        {"positive_passages": [{"title": "t"}]},
        r"positive_passages\[0\]\.text = null; expected a text",
    ),
    "number as title": (
        "tevatron",
        {"positive_passages": [{"title": 3, "text": "t"}]},
        r"positive_passages\[0\]\.title = 3; expected a text",
    ),
}


@pytest.mark.parametrize(("name", "change", "message"), SPOILED.values(), ids=SPOILED)
def test_spoiled_rows_of_each_format_are_named(tmp_path, name, change, message):
    good, other = IR_FORMATS[name]
    path = write_jsonl(tmp_path / "a.jsonl", [good, {**other, **change}])
    with pytest.raises(DataError, match=r"a\.jsonl:2: " + message):
        records_of(path, "ir")


def test_a_release_row_is_one_pair_for_each_scored_text(tmp_path):
    good, other = STS_FORMATS["codiemb"]
    others = {
        "positives": [["", "", "f"], ["", "see ", "g"]],
        "positive_scores": [1, "0.25"],
        "negatives": [["", "", "h"]],
        "negative_scores": [0],
    }
    path = write_jsonl(tmp_path / "a.jsonl", [good, {**other, **others}, good])
    assert records_of(path, "sts") == [
        STS[0],
        StsRecord(text1="e", text2="f", score=1.0),
        StsRecord(text1="e", text2="see g", score=0.25),
        StsRecord(text1="e", text2="h", score=0.0),
        STS[0],
    ]
    source = open_source(SourceRecipe(name="set", task="sts", path=str(path)), ".")
    assert "5 pairs of 3 rows" in source.describe


def test_a_release_row_has_as_many_scores_as_texts(tmp_path):
    good, other = STS_FORMATS["codiemb"]
    path = write_jsonl(tmp_path / "a.jsonl", [good, {**other, "positive_scores": [1, 0]}])
    with pytest.raises(DataError, match=r"a\.jsonl:2: positives = 1 with 2 positive_scores; expec"):
        records_of(path, "sts")
    write_jsonl(path, [good, {**other, "positive_scores": ["x"]}])
    with pytest.raises(DataError, match=r'a\.jsonl:2: positive_scores\[0\] = "x"; expected a num'):
        records_of(path, "sts")


@pytest.mark.parametrize(("name", "task"), [("codiemb", "ir"), ("flag-embedding", "ir")])
def test_an_instruction_in_the_rows_that_is_not_used_is_told(tmp_path, caplog, name, task):
    path = write_jsonl(tmp_path / "a.jsonl", IR_FORMATS[name][::-1])
    records_of(path, task)
    assert 'rows carry the instruction "find", which is not used' in caplog.text
    caplog.clear()
    records_of(path, task, query_instruction="find")
    assert not caplog.text


def test_a_saved_set_is_read_by_its_folder(tmp_path):
    import datasets

    datasets.Dataset.from_list(TRIPLETS).save_to_disk(str(tmp_path / "saved"))
    assert records_of(tmp_path / "saved", "ir") == ONE_POSITIVE


def test_a_folder_of_several_kinds_is_refused(tmp_path):
    for kind in (".csv", ".jsonl"):
        write_as(kind, tmp_path, TRIPLETS)
    with pytest.raises(DataError, match=r"expected data files of one kind, not \.csv, \.jsonl"):
        records_of(tmp_path, "ir")
    assert records_of(tmp_path / "*.csv", "ir") == ONE_POSITIVE


def test_unknown_and_damaged_files_are_named(tmp_path):
    (tmp_path / "a.xml").write_text("<a/>")
    with pytest.raises(DataError, match=r"a\.xml: suffix = \.xml; expected \.jsonl, "):
        records_of(tmp_path / "a.xml", "ir")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"x" * 1000)[:-12])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: content = .*; expected a whole gz file"):
        records_of(tmp_path / "a.jsonl.gz", "ir")
    for name in ("a.jsonl.zst", "a.parquet", "a.arrow"):
        (tmp_path / name).write_bytes(b"no such thing" * 9)
        with pytest.raises(DataError, match=rf"{name}: content = .*; expected a whole \w+ file"):
            records_of(tmp_path / name, "ir")
    pyarrow.parquet.write_table(pyarrow.table({"anchor": []}), tmp_path / "empty.parquet")
    with pytest.raises(DataError, match=r"empty\.parquet: rows = 0"):
        records_of(tmp_path / "empty.parquet", "ir")


def test_a_hub_set_that_cannot_be_reached_is_named(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    recipe = SourceRecipe(name="far", task="ir", hub="nobody/nothing-of-the-kind")
    with pytest.raises(DataError, match=r"data\.sources\.far: hub = nobody/.*; expected a set"):
        open_source(recipe, ".")


def test_a_large_file_is_indexed_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CACHE_FROM_BYTES", 0)
    monkeypatch.setattr(table_scan, "CACHE_FROM_ROWS", 0)
    path = write_jsonl(tmp_path / "a.jsonl", IR_FORMATS["records"])
    assert records_of(path, "ir") == IR
    cached = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.npy")}
    names = {"ranges", "sha256", "rows", "parts", "queries", "scores"}
    names |= {"num_duplicates", "num_skipped", "num_dropped", "num_scored", "num_without"}
    assert {file.stem for file in cached} == names
    assert records_of(path, "ir") == IR
    assert cached == {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.npy")}
    write_jsonl(path, IR_FORMATS["records"][:1])
    assert records_of(path, "ir") == IR[:1]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(files, "CACHE_FROM_BYTES", 0)
    path = write_jsonl(tmp_path / "a.jsonl", IR_FORMATS["records"])
    assert records_of(path, "ir") == IR
    assert "data is indexed anew at each start" in caplog.text


def test_memory_does_not_grow_with_the_file(tmp_path):
    text = "the cat sat on the mat and the dog ran " * 30
    rows = ({"query": f"q{i}", "positives": [f"{text} {i}"]} for i in range(40_000))
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    assert path.stat().st_size > files.CACHE_FROM_BYTES
    code = (
        "import sys\n"
        "from trainer.data.sources import open_source\n"
        "from trainer.recipe.schema import SourceRecipe\n"
        "def anonymous():\n"
        "    status = open('/proc/self/status').read()\n"
        "    return int(status.partition('RssAnon:')[2].split()[0])\n"
        "before = anonymous()\n"
        "source = open_source(SourceRecipe(name='a', task='ir', path=sys.argv[1]), '.')\n"
        "texts = [source.record(row).query for row in range(0, len(source), 7)]\n"
        "print(anonymous() - before)\n"
    )
    run = [sys.executable, "-c", code, str(path)]
    grown = [int(subprocess.run(run, capture_output=True, check=True).stdout) for _ in range(2)]
    # 48 MB of file; arrays of 40 bytes a row and the interpreter's own growth stay under 16 MB
    assert max(grown) < 16_000
