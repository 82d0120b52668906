"""Memory of mining: a million random passages and ten thousand queries, on one rank and on two.

    python tools/bench/mine.py               # a quarter of an hour on two CPU cores
    python tools/bench/mine.py --ranks 2 --json                   # the last line is one JSON object
    python tools/bench/mine.py --passages 100000 --queries 1000 --ranks 1

Texts are random words, and the model is an encoder of one layer with random weights, so that what
is measured is what mining itself holds. Of each rank are read its anonymous memory, 20 times a
second, and the kernel's high-water mark of resident pages, which also counts files that are mapped.
Two ranks must give the rows of one.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# started by path, as the docs show
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from trainer.cli import ending_with_code

ROOT = Path(__file__).parents[2]
LIMIT_BYTES = 2 * 2**30
"""Of a rank, at a million passages and ten thousand queries."""
WORDS, WORDS_OF_TEXT = 1000, 8
SIZE = 64
"""Numbers of a vector."""
SAMPLE_SEC = 0.05
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def make_model(folder: Path) -> None:
    """Write an encoder of one layer as sentence-transformers reads it."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import AutoModel, BertConfig, PreTrainedTokenizerFast

    names = [*SPECIAL, *(f"w{number}" for number in range(WORDS))]
    words = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    backbone = folder / "backbone"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(backbone)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=SIZE, intermediate_size=SIZE, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32,
        # so that vectors of different words differ
        initializer_range=0.2,
    )  # fmt: skip
    AutoModel.from_config(config).save_pretrained(backbone)
    parts = [Transformer(str(backbone), max_seq_length=16), Pooling(SIZE, pooling_mode="mean")]
    SentenceTransformer(modules=parts, device="cpu").save(str(folder / "model"))


def words_of(number: int) -> list[str]:
    """The words of a text, the same for a number."""
    rng = random.Random(number)
    return [f"w{rng.randrange(WORDS)}" for _ in range(WORDS_OF_TEXT)]


def make_data(folder: Path, num_passages: int, num_queries: int) -> None:
    """Write random texts as a BEIR folder; a query shares half of its words with its answer."""
    (folder / "qrels").mkdir(parents=True)
    with (folder / "corpus.jsonl").open("w") as corpus:
        for number in range(num_passages):
            corpus.write(f'{{"_id": "d{number}", "text": "{" ".join(words_of(number))}"}}\n')
    with (
        (folder / "queries.jsonl").open("w") as queries,
        (folder / "qrels" / "train.tsv").open("w") as qrels,
    ):
        qrels.write("query-id\tcorpus-id\tscore\n")
        for number in range(num_queries):
            answer = number * num_passages // num_queries
            half = WORDS_OF_TEXT // 2
            words = [*words_of(answer)[:half], *words_of(num_passages + number)[half:]]
            queries.write(f'{{"_id": "q{number}", "text": "{" ".join(words)}"}}\n')
            qrels.write(f"q{number}\td{answer}\t1\n")


def start_ranks(folder: Path, output: Path, num_ranks: int) -> list[subprocess.Popen[bytes]]:
    """The command on so many ranks of this host, as torchrun starts them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    command = [
        sys.executable, str(ROOT / "tools" / "mine.py"), "--model", str(folder / "model"),
        "--source", str(folder / "data"), "--output", str(output), "--skip-top", "2",
    ]  # fmt: skip
    ranks = []
    for rank in range(num_ranks):
        place = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks),
            "LOCAL_WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        with (folder / f"rank-{rank}.log").open("wb") as log:
            ranks.append(
                subprocess.Popen(
                    command, env=os.environ | place, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT
                )
            )
    return ranks


def status_bytes(pid: int, field: str) -> int:
    """A line of /proc/PID/status such as `RssAnon:  1234 kB`; 0 when the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def cpu_seconds() -> float:
    """Processor time of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(folder: Path, num_ranks: int) -> dict[str, Any]:
    """Mine once; peaks by rank in bytes, seconds of all ranks, and a digest of the rows.

    Raises:
        SystemExit: if a rank fails.
    """
    output = folder / f"rows-{num_ranks}.jsonl"
    begun, cpu_before = time.monotonic(), cpu_seconds()
    ranks = start_ranks(folder, output, num_ranks)
    anonymous, resident = [0] * num_ranks, [0] * num_ranks
    while any(rank.poll() is None for rank in ranks):
        for number, rank in enumerate(ranks):
            anonymous[number] = max(anonymous[number], status_bytes(rank.pid, "RssAnon"))
            resident[number] = max(resident[number], status_bytes(rank.pid, "VmHWM"))
        time.sleep(SAMPLE_SEC)
    seconds = time.monotonic() - begun
    if any(rank.returncode for rank in ranks):
        raise SystemExit((folder / "rank-0.log").read_text()[-3000:])
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    record = json.loads(output.with_name(f"{output.name}.json").read_text(encoding="utf-8"))
    for made in folder.glob(f"{output.name}*"):
        made.unlink()
    return {
        "peak_anon_bytes": anonymous,
        "peak_resident_bytes": resident,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds() - cpu_before,
        "negatives": sum(record["negatives"]),
        "rows_sha256": digest,
    }


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--ranks", type=int, nargs="+", default=(1, 2), help="default: 1 2")
    parser.add_argument("--workdir", type=Path, help="where data are made; default: a temporary")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser.parse_args()


def main() -> int:
    """Mine on each number of ranks and compare."""
    arguments = read_arguments()
    folder = Path(tempfile.mkdtemp(prefix="mine-", dir=arguments.workdir))
    try:
        make_model(folder)
        make_data(folder / "data", arguments.passages, arguments.queries)
        results = {count: measure(folder, count) for count in arguments.ranks}
    finally:
        shutil.rmtree(folder)
    print(
        f"{'ranks':>5}  {'rank':>4}  {'anonymous, MiB':>14}  {'resident, MiB':>13}  {'seconds':>7}"
    )
    for count, one in results.items():
        both = zip(one["peak_anon_bytes"], one["peak_resident_bytes"], strict=True)
        for rank, (own, all_) in enumerate(both):
            row = f"{own / 2**20:14,.0f}  {all_ / 2**20:13,.0f}  {one['seconds']:7.0f}"
            row += f"  {one['cpu_seconds']:6.0f}"
            print(f"{count:5}  {rank:4}  {row}")
    same = len({one["rows_sha256"] for one in results.values()}) == 1
    peak = max(max(one["peak_resident_bytes"]) for one in results.values())
    negatives = next(iter(results.values()))["negatives"]
    print(f"{negatives:,} negatives; the same rows: {same}")
    print(f"largest peak of a rank: {peak / 2**20:,.0f} MiB")
    if arguments.json:
        print(json.dumps({
            "passages": arguments.passages, "queries": arguments.queries, "same_rows": same,
            "peak_bytes": peak, "below_limit": peak < LIMIT_BYTES,
            "ranks": {str(count): one for count, one in results.items()},
        }))  # fmt: skip
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
