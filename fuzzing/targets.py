"""The readers of what strangers give, each fed with bytes; it must not know how inputs are found.

A reader gets the files of one folder. Its input is their contents, one after the other, so that a
fuzzer sees plain bytes. Modules of the trainer are imported with the first input: a fuzzer that
instruments imports decides when.
"""

import contextlib
import importlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fuzzing import seeds
from fuzzing.outcomes import all_of, any_of

SEPARATOR = b"\n--next file--\n"
"""Between the files of an input."""
CHECKPOINT, FORMATS = "trainer.checkpoint.", "trainer.data.formats."
TEXT_ROWS = tuple(f"trainer.data.{one}" for one in ("fields", "files", "scan", "tables",
                  "sources", "text_table", "encodings"))  # fmt: skip
BEIR = tuple(f"trainer.data.{one}" for one in ("beir", "evalsets", "documents", "qrels", "ids",
             "layouts"))  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One reader with the files it reads."""

    name: str
    """For the command line."""
    files: tuple[str, ...]
    """Paths in its folder, in the order in which an input holds them."""
    read: Callable[[Path], None]
    """Reads the folder; ends with success or a TrainerError."""
    seeds: Callable[[], Sequence[Sequence[bytes]]]
    """Valid inputs, as the contents of `files`; an empty one stands for no such file."""
    modules: tuple[str, ...] = ()
    """Modules whose lines it should reach."""

    def split(self, data: bytes) -> list[bytes]:
        """The contents of the files; what an input lacks is empty."""
        parts = data.split(SEPARATOR, len(self.files) - 1)
        return parts + [b""] * (len(self.files) - len(parts))

    def feed(self, data: bytes, folder: Path) -> None:
        """Write the files of an input into a folder and read them.

        Raises:
            TrainerError: the input was refused, as it may be.
            AssertionError: it was refused in a message that no user could act on.
        """
        for name, content in zip(self.files, self.split(data), strict=True):
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            # a new file each time: tensors of an earlier input may still be mapped from the old one
            file.unlink(missing_ok=True)
            if content:
                file.write_bytes(content)
        all_of(partial(self.read, folder))


def join(parts: Sequence[bytes]) -> bytes:
    """One input of the contents of a reader's files."""
    return SEPARATOR.join(parts)


def read_recipe(folder: Path) -> None:
    """A recipe with one override a line, resolved and written out again."""
    from trainer.recipe.load import dump_recipe, load_recipe

    with contextlib.suppress(FileNotFoundError):
        lines = (folder / "overrides.txt").read_text("utf-8", "surrogateescape").splitlines()
        dump_recipe(load_recipe(folder / "recipe.yaml", lines))
        return
    dump_recipe(load_recipe(folder / "recipe.yaml"))


def read_source(path: Path, task: Any, name: str | None = None) -> None:
    """All records of a file or folder of training data.

    Args:
        path: as a recipe would name it.
        task: `ir`, `sts` or `labels`.
        name: of the format; None: by the columns.
    """
    from trainer.data.sources import open_source
    from trainer.recipe.schema import SourceRecipe

    source = open_source(SourceRecipe(name="set", task=task, path=str(path), format=name), ".")
    for row in range(len(source)):
        source.record(row)
    assert len(source.queries) >= len(source)
    source.check_files()


def read_eval_set(path: Path, task: Any) -> None:
    """A file or folder of evaluation data, texts and judgements included."""
    from trainer.data.evalsets import open_eval_set
    from trainer.data.ir import IrEvalSet
    from trainer.recipe.schema import DataRecipe, EvalSetRecipe

    recipe = EvalSetRecipe(name="set", task=task, path=str(path), split="train")
    found = open_eval_set(recipe, DataRecipe(sources=()))
    if isinstance(found, IrEvalSet):
        assert len(list(found.corpus)) == len(found.corpus_ids)


def read_rows(folder: Path, *, file: str) -> None:
    """A row file, as data of either task; what is unpacked or converted for it is removed."""
    try:
        any_of(*(partial(read_source, folder / file, task) for task in ("ir", "sts")))
    finally:
        shutil.rmtree(folder / "cache", ignore_errors=True)


def read_row_format(folder: Path, *, name: str, file: str) -> None:
    """A row file in a format that is named, and in the one that its rows show."""
    from trainer.data.formats import ADAPTERS

    tasks = sorted({adapter.task for adapter in ADAPTERS if adapter.name == name})
    ways = [(task, one) for task in tasks for one in (name, None)]
    any_of(*(partial(read_source, folder / file, *way) for way in ways))


def read_packed(folder: Path) -> None:
    """The packed row files that are there."""
    names = [name for name in PACKED if (folder / name).exists()]
    all_of(*(partial(read_rows, folder, file=name) for name in names))


def read_columnar(folder: Path, *, name: str) -> None:
    """A Parquet or Arrow file; copies that `datasets` makes of it are removed."""
    try:
        read_source(folder / name, "sts")
    finally:
        shutil.rmtree(folder / "datasets", ignore_errors=True)


def read_set_folder(folder: Path) -> None:
    """Candidates of a folder with a corpus, or else the rows of a split, as its card has them."""
    from trainer.data.evalsets import open_eval_set
    from trainer.recipe.schema import DataRecipe, EvalSetRecipe

    data = DataRecipe(sources=())
    sets = [
        EvalSetRecipe(name="set", task=kind, path=str(folder), split="test")
        for kind in ("reranking", "clustering")
    ]
    any_of(*(partial(open_eval_set, one, data) for one in sets))


def read_beir(folder: Path) -> None:
    """A BEIR folder, for training and for evaluation."""
    all_of(partial(read_source, folder, "ir", "beir"), partial(read_eval_set, folder, "ir"))


def read_manifests(folder: Path) -> None:
    """A manifest, as resuming and as merging read it."""
    from trainer.checkpoint import manifest, zero_format

    def resume() -> None:
        found = manifest.read_manifest(folder)
        manifest.verify(folder, found, found.files)

    all_of(resume, partial(zero_format.read_manifest, folder))


def read_weights(folder: Path) -> None:
    """A checkpoint of any kind, its tensors' first elements and its identity."""
    from trainer.checkpoint import open as opened

    source = opened.open_checkpoint(folder)
    opened.base_fingerprint(source)
    opened.identity(source, hash_files=True)


def read_adapter(folder: Path) -> None:
    """An adapter, and what it makes of its base."""
    from trainer.checkpoint import lora_deltas
    from trainer.checkpoint import open as opened

    source = opened.open_checkpoint(folder)
    opened.fingerprint(source.plain)
    if source.lora is not None and (folder / "base").is_dir():
        base = opened.open_checkpoint(folder / "base")
        opened.fingerprint(lora_deltas.adapted(base.plain, source.adapters, source.lora))


def read_pickle(folder: Path) -> None:
    """One file of torch.save."""
    from trainer.checkpoint import unpickle

    unpickle.load_pickled(folder / "state.pt")


def read_zero_folder(folder: Path) -> None:
    """A ZeRO checkpoint: the model's tensors, the optimizer's, and the folder by its `latest`."""
    from trainer.checkpoint import zero_format

    tag = folder / "step-2"
    root = folder if (folder / "latest").exists() else tag
    all_of(
        partial(zero_format.read_zero, tag),
        partial(zero_format.read_progress, tag),
        partial(read_weights, root),
    )


def _row_format(name: str) -> Reader:
    file = "rows.tsv" if name in seeds.WITHOUT_HEADER else "rows.jsonl"
    return Reader(
        name=f"rows-{name}",
        files=(file, *seeds.BESIDE.get(name, ())),
        read=partial(read_row_format, name=name, file=file),
        seeds=partial(seeds.row_files, name),
        modules=(*TEXT_ROWS, f"{FORMATS}{seeds.MODULES.get(name, name.replace('-', '_'))}"),
    )


PACKED = ("rows.jsonl.gz", "rows.jsonl.zst")
SHARDS = ("model-1.safetensors", "model-2.safetensors")
ZERO_FILES = (
    "mp_rank_00_model_states.pt",
    "zero_pp_rank_0_mp_rank_00_model_states.pt",
    "zero_pp_rank_1_mp_rank_00_model_states.pt",
    "zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "zero_pp_rank_1_mp_rank_00_optim_states.pt",
    "manifest.json",
)

READERS: tuple[Reader, ...] = (
    Reader(
        name="recipe",
        files=("recipe.yaml", "overrides.txt"),
        read=read_recipe,
        seeds=seeds.recipes,
        modules=tuple(f"trainer.recipe.{one}" for one in ("document", "load", "rules", "typed")),
    ),
    *(_row_format(name) for name in seeds.ROWS),
    Reader(
        name="json-array",
        files=("rows.json",),
        read=partial(read_rows, file="rows.json"),
        seeds=seeds.json_arrays,
        modules=TEXT_ROWS,
    ),
    Reader(
        name="csv",
        files=("rows.csv",),
        read=partial(read_rows, file="rows.csv"),
        seeds=partial(seeds.delimited, ","),
        modules=(*TEXT_ROWS, "trainer.data.delimited"),
    ),
    Reader(
        name="tsv",
        files=("rows.tsv",),
        read=partial(read_rows, file="rows.tsv"),
        seeds=partial(seeds.delimited, "\t"),
        modules=(*TEXT_ROWS, "trainer.data.delimited", "trainer.data.tab_separated"),
    ),
    Reader(
        name="packed",
        files=PACKED,
        read=read_packed,
        seeds=seeds.packed,
        modules=(*TEXT_ROWS, "trainer.data.compressed"),
    ),
    *(
        Reader(
            name=kind,
            files=(f"rows.{kind}",),
            read=partial(read_columnar, name=f"rows.{kind}"),
            seeds=partial(seeds.columnar, kind),
            modules=("trainer.data.arrow", "trainer.data.scan", "trainer.data.tables"),
        )
        for kind in ("parquet", "arrow")
    ),
    Reader(
        name="beir",
        files=("corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "hard_negatives.train.jsonl"),
        read=read_beir,
        seeds=seeds.beir_folders,
        modules=(*TEXT_ROWS, *BEIR),
    ),
    Reader(
        name="set-folder",
        files=(
            "README.md",
            "test.jsonl",
            "corpus.jsonl",
            "queries.jsonl",
            "qrels/test.jsonl",
            "top_ranked.jsonl",
        ),
        read=read_set_folder,
        seeds=seeds.set_folders,
        modules=(*TEXT_ROWS, *BEIR, "trainer.data.reranking", "trainer.data.set_folder"),
    ),
    Reader(
        name="manifest",
        files=("manifest.json", "weights.bin"),
        read=read_manifests,
        seeds=seeds.manifests,
        modules=(f"{CHECKPOINT}manifest",),
    ),
    Reader(
        name="safetensors",
        files=("model.safetensors",),
        read=read_weights,
        seeds=seeds.safetensors_files,
        modules=(f"{CHECKPOINT}safetensors_file", f"{CHECKPOINT}names"),
    ),
    Reader(
        name="index",
        files=(
            "model.safetensors.index.json",
            *SHARDS,
            "modules.json",
            "0_Transformer/model.safetensors",
        ),
        read=read_weights,
        seeds=seeds.sharded_models,
        modules=(f"{CHECKPOINT}open", f"{CHECKPOINT}safetensors_file", f"{CHECKPOINT}names"),
    ),
    Reader(
        name="adapter",
        files=("adapter_config.json", "adapter_model.safetensors", "base/model.safetensors"),
        read=read_adapter,
        seeds=seeds.peft_adapters,
        modules=(f"{CHECKPOINT}lora_deltas", f"{CHECKPOINT}open", f"{CHECKPOINT}names"),
    ),
    Reader(
        name="zero-pickle",
        files=("state.pt",),
        read=read_pickle,
        seeds=seeds.pickles,
        modules=(f"{CHECKPOINT}unpickle",),
    ),
    Reader(
        name="zero",
        files=("latest", *(f"step-2/{name}" for name in ZERO_FILES)),
        read=read_zero_folder,
        seeds=seeds.zero_folders,
        modules=(f"{CHECKPOINT}zero_format", f"{CHECKPOINT}zero_files", f"{CHECKPOINT}open"),
    ),
)
"""All readers, in the order in which they are run."""


def find_reader(name: str) -> Reader:
    """The reader of a name, or the one that `module:attribute` holds.

    Raises:
        LookupError: there is none.
    """
    module, colon, attribute = name.partition(":")
    if colon:
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise LookupError(f"reader = {name}; {error}") from error
        if isinstance(found, Reader):
            return found
    for reader in READERS:
        if reader.name == name:
            return reader
    raise LookupError(f"reader = {name}; expected one of {', '.join(r.name for r in READERS)}")
