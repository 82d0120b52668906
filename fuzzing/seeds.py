"""Small valid inputs for the readers under fuzzing; it must not read any file of the project.

Each function gives the contents of a reader's files, in its order; an empty one stands for no such
file. What another library defines (Parquet, torch's zip) that library writes.
"""

import gzip
import hashlib
import io
import json
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

Parts = tuple[bytes, ...]

RECIPE = b"""\
# most sections of a recipe
name: small
output_dir: out
seed: 3
model:
  path: model
  pooling: last
  lora: {rank: 4, alpha: 8.0, targets: [q_proj, v_proj]}
data:
  pattern: {ir: 1, sts: 1}
  sources:
    - {name: pairs, task: sts, path: pairs.jsonl, score_range: [0, 5]}
    - name: docs
      task: ir
      path: docs.jsonl
      query_instruction: "query: "
tasks:
  ir: {global_batch_size: 4, positives: 1, negatives: 0, temperature: 0.05}
  sts: {global_batch_size: 4, weights: {pearson: 2, rank_kl: 5.0}}
train: {max_steps: 2, learning_rate: 1.0e-5, betas: [0.9, 0.999]}
eval: {every_steps: 1, sets: [{name: held_out, task: sts, path: pairs.jsonl}]}
"""
ALIASES = b"""\
name: a
output_dir: out
model: {path: &word model}
data:
  sources:
    - &one {name: docs, task: ir, path: *word}
    - {<<: *one, name: more}
tasks: {ir: {global_batch_size: 4}}
train: {max_steps: !!int "2"}
"""

_QUERY = ["Find.", "", "a query"]
ROWS: dict[str, list[Any]] = {
    "codiemb": [
        {"task_type": "ir", "query": _QUERY, "positives": [["", "", "p"]],
         "negatives": [["", "i: ", "n"]]},
        {"task_type": "sts", "query": _QUERY, "positives": [["", "", "p"]],
         "positive_scores": [3.5]},
    ],
    "records": [
        {"query": "a", "positives": ["p", "\u00e9"], "negatives": ["n"], "task": "ir"},
        {"text1": "a", "text2": "\u6f22", "score": 0.5},
        {"text": "a", "label": "\u6f22"},
        {"text1": "a", "text2": "b", "label": 1},
    ],
    "mteb": [
        {"sentences": ["a", "b"], "labels": ["x", "y"]},
        {"sentence1": "a", "sentence2": "b", "labels": 1},
        {"query": "a", "positive": ["p"], "negative": ["n"]},
    ],
    "labelled-texts": [
        [{"sentence": text, "label": [int(text in "ab")]} for text in "abcd"],
        [{"text": text, "label_text": str(text in "ab")} for text in "abcd"],
    ],
    "nli": [{"premise": "a", "hypothesis": "p", "label": 0}],
    "sentence-transformers": [
        {"anchor": "a", "positive": "p", "negative_1": "n", "negative_2": None},
        {"sentence1": "a", "sentence2": "b", "score": 4},
    ],
    "flag-embedding": [
        {"query": "a", "pos": ["p"], "neg": ["n"], "pos_scores": [1.0],
         "neg_scores": [0.5], "prompt": "Find: "},
    ],
    "tevatron": [
        {"query_id": "1", "query": "a", "positive_passages": [{"docid": "2", "title": "t",
         "text": "p"}], "negative_passages": [{"docid": "3", "title": "", "text": "n"}]},
    ],
    "tevatron-ids": [
        {"query_id": "1", "query_text": "a", "positive_document_ids": ["2"],
         "negative_document_ids": ["3", 4]},
    ],
    "nomic": [
        {"query": "a", "document": "p", "negatives": ["n"],
         "metadata": {"objective": {"triplet": [["query", "document", "negatives"]]}}},
    ],
    "dpr": [
        {"question": "a", "answers": ["x"], "positive_ctxs": [{"title": "t", "text": "p"}],
         "negative_ctxs": [], "hard_negative_ctxs": [{"title": "", "text": "n"}]},
    ],
    "gritlm": [
        {"query": ["i", "a"], "pos": [["j", "p"]], "neg": [["j", "n"], ["n"]]},
        {"query": ["i", "a"], "pos": ["j", "p"], "neg": ["j", "n"]},
    ],
    "swift": [
        {"messages": [{"role": "system", "content": "i"}, {"role": "user", "content": "a"}],
         "positive_messages": [[{"role": "user", "content": [{"type": "text", "text": "p"}]}]],
         "negative_messages": [[{"role": "user", "content": "n"}]], "label": 0.5},
        {"query": "a", "response": "p", "rejected_response": ["n"], "label": 1.0},
    ],
    "texts": [["a", "p", "n"]],
    "set": [{"set": ["a", "p", "q"]}],
    "by-order": [{"x": "a", "y": "p", "z": "n"}, {"x": "a", "y": "b", "label": 0.5}],
    "msmarco-triples": [{"query": "a", "positive": "p", "negative": "n"}],
    "pairs-without-header": [{"query": "a", "positive": "p"}],
    "stsbenchmark": [
        {"genre": "g", "filename": "f", "year": "y", "index": "1", "score": "4.2", "a": "a",
         "b": 'b "c'},
    ],
}  # fmt: skip
"""Rows of each format: one of each task and of each shape that it has."""
WHOLE = ("labelled-texts",)
"""Formats whose rows mean something beside others alone: each entry is the rows of a file."""
WITHOUT_HEADER = ("msmarco-triples", "pairs-without-header", "stsbenchmark")
"""Formats of tab-separated files; rows of all others are JSON."""
BESIDE: dict[str, dict[str, list[Any]]] = {
    "tevatron-ids": {"corpus.jsonl": [{"docid": str(n), "text": f"t {n}"} for n in (2, 3, 4)]},
}
"""Files that rows of a format need, by name."""
MODULES = {"records": "own", "set": "texts", **dict.fromkeys(WITHOUT_HEADER[:2], "by_order")}
"""Where a format is read that does not give its module its name."""


def recipes() -> list[Parts]:
    """Recipes, without and with overrides."""
    overrides = b"train.max_steps=5\ndata.sources.docs.path=x\ndata.pattern.ir=2\nmodel.lora=null\n"
    return [(RECIPE, b""), (RECIPE, overrides), (ALIASES, b"")]


def _lines(rows: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def row_files(name: str) -> list[Parts]:
    """A file of each row of a format, three times over, with what stands beside it."""
    if name in WITHOUT_HEADER:
        return [(("\t".join(row.values()) + "\n").encode() * 3,) for row in ROWS[name]]
    if name in WHOLE:
        return [(_lines(rows),) for rows in ROWS[name]]
    beside = [_lines(rows) for rows in BESIDE.get(name, {}).values()]
    return [(_lines([row] * 3), *beside) for row in ROWS[name]]


def json_arrays() -> list[Parts]:
    """JSON arrays of rows, in one line and in many, and an object a line."""
    rows = ROWS["records"][:1] * 2
    return [
        (json.dumps(rows).encode(),),
        (b"\xef\xbb\xbf" + json.dumps(ROWS["records"][1:2] * 2, indent=1).encode(),),
        (_lines(rows),),
    ]


def delimited(delimiter: str) -> list[Parts]:
    """Files with quoted delimiters, quotes and line breaks, one of them in UTF-16."""
    pairs = 'text1,text2,score\na,"b, ""c""\nd",0.5\n\nx,y,1\n'
    triplets = 'anchor,positive,negative\r\na,"b",c\r\n'
    texts = [text.replace(",", delimiter) for text in (pairs, triplets)]
    return [*((text.encode(),) for text in texts), (texts[1].encode("utf-16"),)]


def packed() -> list[Parts]:
    """A gzip and a Zstandard file."""
    import pyarrow as pa

    plain = _lines(ROWS["records"][:1] * 2)
    zst = pa.compress(plain, codec="zstd", asbytes=True)
    return [(gzip.compress(plain, mtime=0), b""), (b"", zst)]


def columnar(kind: str) -> list[Parts]:
    """A table of pairs as Parquet, or as an Arrow stream and an Arrow file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"text1": f"a {n}", "text2": "b", "score": n / 2} for n in range(3)]
    table = pa.Table.from_pylist(rows)
    if kind == "parquet":
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="none")
        return [(sink.getvalue(),)]
    found: list[Parts] = []
    for writer in (pa.ipc.new_stream, pa.ipc.new_file):
        sink = io.BytesIO()
        with writer(sink, table.schema) as out:
            out.write_table(table)
        found.append((sink.getvalue(),))
    return found


def beir_folders() -> list[Parts]:
    """A folder with hard negatives, and one without whose judgements are TREC's."""
    corpus = _lines([{"_id": f"d{n}", "title": "t" * n, "text": f"text {n}"} for n in range(4)])
    queries = _lines([{"_id": "q0", "text": "a"}, {"_id": 1, "text": "b"}])
    qrels = b"query-id\tcorpus-id\tscore\nq0\td0\t1\n1\td1\t2\n1\td2\t0\n"
    mined = _lines([{"query_id": "q0", "negatives": ["d2", "d3"]}])
    return [(corpus, queries, qrels, mined), (corpus, queries, b"q0 0 d0 1\n1 0 d1 2\n", b"")]


def set_folders() -> list[Parts]:
    """Candidates beside their corpus, and rows that a card names."""
    corpus = _lines([{"_id": f"d{n}", "text": f"text {n}"} for n in range(3)])
    queries = _lines([{"_id": "q0", "text": "a"}])
    qrels = _lines([{"query-id": "q0", "corpus-id": "d0", "score": 1}])
    ranked = _lines([{"query-id": "q0", "corpus-ids": ["d0", "d1"]}])
    rows = _lines([{"sentences": ["a", "b"], "labels": ["x", "y"]}])
    card = b"---\nconfigs: [{data_files: [{split: test, path: test.*}]}]\n---\n"
    listed = b'---\nconfigs: [{"data_files": ["*.jsonl"], "data_dir": "."}]\n---\n'
    return [
        (b"", b"", corpus, queries, qrels, ranked),
        (card, rows, b"", b"", b"", b""),
        (listed, rows, b"", b"", b"", b""),
    ]


def manifests() -> list[Parts]:
    """A manifest without a hash of itself, and one with it, each with the file it names."""
    content = b"x" * 10
    entry = {"size": 10, "sha256": hashlib.sha256(content).hexdigest()}
    fields: dict[str, Any] = {
        "format": 1, "step": 2, "world_size": 1, "recipe": {"model": {"path": "m"}},
        "sources": {"s": "0" * 64}, "versions": {"torch": "2"}, "files": {"weights.bin": entry},
        "base": {"path": "m", "files": {"config.json": entry}, "fingerprint": None},
    }  # fmt: skip
    seal = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    sealed = {**fields, "sha256": seal}
    return [(json.dumps(one).encode(), content) for one in (fields, sealed)]


def safetensors(tensors: Mapping[str, Sequence[int]], dtype: str = "F32") -> bytes:
    """A safetensors file of zeros, by name and shape."""
    import torch
    from safetensors.torch import save

    dtypes = {"F32": torch.float32, "BF16": torch.bfloat16, "I64": torch.int64}
    zeros = {name: torch.zeros(*shape, dtype=dtypes[dtype]) for name, shape in tensors.items()}
    return bytes(save(zeros, metadata={"format": "pt"}))


def safetensors_files() -> list[Parts]:
    """Files of several dtypes and wrappers."""
    return [
        (safetensors({"embed_tokens.weight": (4, 3), "norm.weight": (3,)}),),
        (safetensors({"model.layers.0.q_proj.weight": (3, 3), "lm_head.weight": (4, 3)}, "BF16"),),
        (safetensors({"module.backbone.a": (2, 2), "module.backbone.position_ids": (2,)}, "I64"),),
    ]


def sharded_models() -> list[Parts]:
    """A model in two shards, and a folder whose first module lies below it."""
    names = ("embed_tokens.weight", "norm.weight")
    shards = [safetensors({name: (3, 2)}) for name in names]
    files = ["model-1.safetensors", "model-2.safetensors"]
    index = {"metadata": {"total_size": 48}, "weight_map": dict(zip(names, files, strict=True))}
    modules = [{"idx": 0, "name": "0", "path": "0_Transformer", "type": "Transformer"}]
    return [
        (json.dumps(index).encode(), *shards, b"", b""),
        (json.dumps(index).encode(), *shards, json.dumps(modules).encode(), b""),
        (b"", b"", b"", json.dumps(modules).encode(), shards[0]),
    ]


def peft_adapters() -> list[Parts]:
    """Adapters with the base they apply to: LoRA, and DoRA with an alpha of its own."""
    base = safetensors({"q_proj.weight": (3, 4)})
    prefix = "base_model.model.q_proj.lora"
    lora: dict[str, Sequence[int]] = {f"{prefix}_A.weight": (2, 4), f"{prefix}_B.weight": (3, 2)}
    plain = {"peft_type": "LORA", "lora_alpha": 4, "bias": "none"}
    dora = {**plain, "use_dora": True, "use_rslora": True, "alpha_pattern": {"q_proj": 8}}
    magnitude = {f"{prefix}_magnitude_vector": (3,)}
    return [
        (json.dumps(plain).encode(), safetensors(lora), base),
        (json.dumps(dora).encode(), safetensors({**lora, **magnitude}), base),
    ]


def torch_file(content: object) -> bytes:
    """What `torch.save` writes, without the padding that aligns its records."""
    import torch

    sink = io.BytesIO()
    torch.save(content, sink)
    packed = io.BytesIO()
    with zipfile.ZipFile(sink) as found, zipfile.ZipFile(packed, "w") as out:
        for name in found.namelist():
            if not name.endswith(("serialization_id", ".format_version", ".storage_alignment")):
                out.writestr(zipfile.ZipInfo(name), found.read(name))
    return packed.getvalue()


def pickles() -> list[Parts]:
    """Files of tensors and of plain containers."""
    import torch

    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16), "n": [1, 2.5]}
    parameter = {"p": torch.nn.Parameter(torch.zeros(2)), "s": torch.Size([2]), "d": torch.float32}
    plain = OrderedDict(a=(1, None, True, "x"), b={"c": [1 << 40, -1]}, c={1, 2})
    return [(torch_file(content),) for content in (tensors, parameter, plain)]


def zero_folders() -> list[Parts]:
    """Two ranks of stage 3, two of stage 2, and one rank of stage 3 named by `latest`."""
    return [
        _zero_folder(_stage_3(2), b""),
        _zero_folder(_stage_2(2), b""),
        _zero_folder(_stage_3(1), b"step-2\n"),
    ]


def _zero_folder(ranks: Sequence[tuple[Any, Any]], latest: bytes) -> Parts:
    models, states = zip(*((torch_file(model), torch_file(state)) for model, state in ranks),
                         strict=True)  # fmt: skip
    blank = [b""] * (2 - len(ranks))
    sharded = "fp32_flat_groups" in ranks[0][1]["optimizer_state_dict"]
    files = [b"", *models, *blank] if sharded else [models[0], b"", b""]
    manifest = b""
    if latest:
        names = (f"zero_pp_rank_0_mp_rank_00_{kind}_states.pt" for kind in ("model", "optim"))
        sizes = zip(names, (len(models[0]), len(states[0])), strict=True)
        manifest = json.dumps({"files": {name: {"size": size} for name, size in sizes}}).encode()
    return (latest, *files, *states, *blank, manifest)


def _stage_3(world_size: int) -> list[tuple[Any, Any]]:
    """Contents of the model and optimizer file of each rank: a [2, 3], b [2], frozen c [2]."""
    import torch

    width = sum(-(-size // world_size) for size in (6, 2))
    model = {
        "dp_world_size": world_size, "global_steps": 2, "module": {"n": torch.zeros(1)},
        "buffer_names": ["n"], "shared_params": {"tied": "a"},
        "param_shapes": [OrderedDict(a=torch.Size([2, 3]), b=torch.Size([2]))],
        "frozen_param_shapes": {"c": torch.Size([2])},
        "frozen_param_fragments": {"c": torch.zeros(-(-2 // world_size))},
    }  # fmt: skip
    moments = {"step": torch.tensor(2.0), "exp_avg": torch.zeros(width)}
    state = {
        "zero_stage": 3, "partition_count": world_size, "fp32_flat_groups": [torch.zeros(width)],
        "optimizer_state_dict": {"state": {0: moments}, "param_groups": [{"lr": 0.1}]},
    }  # fmt: skip
    return [(model, {"optimizer_state_dict": state})] * world_size


def _stage_2(world_size: int) -> list[tuple[Any, Any]]:
    """As `_stage_3`, with the masters of all ranks one after the other, and no frozen weights."""
    import torch

    model = {
        "dp_world_size": world_size, "global_steps": 2, "buffer_names": [], "shared_params": {},
        "module": {"a": torch.zeros(2, 3), "b": torch.zeros(2)},
        "param_shapes": [OrderedDict(a=torch.Size([2, 3]), b=torch.Size([2]))],
        "frozen_param_shapes": None, "frozen_param_fragments": None,
    }  # fmt: skip
    moments = {"step": torch.tensor(2.0), "exp_avg": torch.zeros(4)}
    state = {
        "zero_stage": 2, "partition_count": [world_size], "param_alignment_paddings": [[0, 0]],
        "single_partition_of_fp32_groups": [torch.zeros(4)],
        "base_optimizer_state": {"state": {0: moments}, "param_groups": [{"lr": 0.1}]},
    }  # fmt: skip
    return [(model, {"optimizer_state_dict": state})] * world_size
