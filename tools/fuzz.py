"""Feed the readers of what strangers give with inputs that are guided by coverage, and report.

Run from the project's root: `python tools/fuzz.py --seconds 600`. Each reader (recipes, row
formats, BEIR folders, manifests, safetensors, ZeRO pickles) gets its share of the seconds in a
process of its own. An input may be read, or be refused by a TrainerError; it must take at most 2
seconds and 512 MiB. Anything else is a finding: its input is saved, and
`python tools/fuzz.py --reproduce FILE` shows it again. Exit codes: 0 no finding, 1 findings, 2 a
mistake of the command line.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fuzzing.targets import READERS, find_reader, join  # noqa: E402

WORKER = ROOT / "fuzzing" / "worker.py"
START_SEC = 180
"""What a process may need besides its share, to import what it reads with."""
MIN_SHARE_SEC = 1.0
MAX_STARTS = 20
"""Processes of one reader; each but the first follows one that an input killed."""
DEADLY = {"timeout": "hang", "oom": "out of memory", "crash": "crash", "leak": "leak"}
"""libFuzzer's words for inputs that ended its process, and ours."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "ARROW_NUM_THREADS": "1"}
"""Environment of all processes: threads that wait for each other cost more than such inputs."""
STATUS = re.compile(r"^#\d+\s.* cov: (\d+) ft: (\d+) ", re.MULTILINE)
EXECUTED = re.compile(r"^stat::number_of_executed_units: (\d+)|^#(\d+)\s", re.MULTILINE)


@dataclass(frozen=True)
class Finding:
    """An input that a reader must not end like that."""

    what: str
    """Exception and place, or how the process ended."""
    message: str
    """Of the exception, or the end of the process's log."""
    file: str
    """The input."""


@dataclass
class Result:
    """What fuzzing one reader came to."""

    reader: str
    """Its name."""
    seconds: float = 0.0
    """Spent, without imports."""
    executions: int = 0
    """Inputs that were fed."""
    edges: int = 0
    """Of the instrumented code, that were reached."""
    features: int = 0
    """Edges with counts and comparisons, as libFuzzer has them."""
    lines: int | None = None
    """Of the reader's modules, that the inputs that were kept reach; None: not counted."""
    all_lines: int | None = None
    """Of the reader's modules."""
    findings: list[Finding] = field(default_factory=list)
    """One of each kind."""


def main(argv: Sequence[str]) -> int:
    """Fuzz and report; returns the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.reproduce is not None:
        return _reproduce(parser, arguments.reproduce)
    names = arguments.readers or [reader.name for reader in READERS]
    _check(parser, names, arguments.seconds)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        base = Path(arguments.corpus or scratch).resolve()
        kept = base if arguments.corpus else Path(tempfile.gettempdir())
        results = []
        for name in names:
            share = arguments.seconds / len(names)
            results.append(fuzz_reader(name, base / name, share, arguments.seed, kept=kept))
            _print_row(results[-1], header=len(results) == 1)
        _count_lines(base, results)
    return _report(results, as_json=arguments.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fuzz.py", allow_abbrev=False, description="Fuzz the readers of what strangers give."
    )
    add = parser.add_argument
    add("--seconds", type=float, default=600.0, help="for all readers together; default 600")
    add("--readers", nargs="+", metavar="NAME", help="only these; module:attribute for another")
    add("--seed", type=int, default=1, help="of all choices; default 1")
    add("--corpus", metavar="DIR", help="keep the inputs that reach something, and start from them")
    add("--json", action="store_true", help="print the results as a last line")
    add("--reproduce", metavar="FILE", help="feed one saved input, show how it ends, do no more")
    return parser


def _check(parser: argparse.ArgumentParser, names: Sequence[str], seconds: float) -> None:
    """End with code 2 where there is nothing to run."""
    for name in names:
        try:
            find_reader(name)
        except LookupError as error:
            parser.error(f"--readers: {error.args[0]}. Correct the name.")
    if seconds < MIN_SHARE_SEC * len(names):
        parser.error(
            f"--seconds = {seconds:g}; expected at least {MIN_SHARE_SEC * len(names):g}, 1 for "
            "each reader. Give more, or choose --readers."
        )
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris = absent; expected it for fuzzing. Run pip install -e '.[fuzz]'.")


def fuzz_reader(name: str, out: Path, seconds: float, seed: int, *, kept: Path) -> Result:
    """Fuzz one reader, in new processes as long as inputs kill them.

    Args:
        name: of the reader.
        out: folder of its corpus.
        seconds: its share.
        seed: of all choices.
        kept: folder that gets the inputs of findings.
    """
    result = Result(name)
    corpus = out / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, parts in enumerate(find_reader(name).seeds()):
        (corpus / f"seed-{number}").write_bytes(join(parts))
    for start in range(MAX_STARTS):
        left = seconds - result.seconds
        if left < MIN_SHARE_SEC:
            break
        for place in ("faults", "artifacts", "files"):
            shutil.rmtree(out / place, ignore_errors=True)
        _run_worker(result, out, left, seed + start, kept=kept)
        _collect(result, out, kept)
    return result


def _run_worker(result: Result, out: Path, seconds: float, seed: int, *, kept: Path) -> None:
    """One process; adds what it did to the result."""
    arguments = ["fuzz", result.reader, str(out), str(int(seconds)), str(seed)]
    log = out / "log.txt"
    started = time.monotonic()
    with log.open("wb") as file, contextlib.suppress(subprocess.TimeoutExpired):
        _worker(arguments, seconds + START_SEC, stdout=file, stderr=file)
    text = log.read_text(errors="replace")
    executed = [int(found[1] or found[2]) for found in EXECUTED.finditer(text)]
    result.executions += max(executed, default=0)
    status = STATUS.findall(text)
    result.edges = max([result.edges, *(int(edges) for edges, _ in status)])
    result.features = max([result.features, *(int(features) for _, features in status)])
    done = re.search(r"^Done \d+ runs in (\d+) second", text, re.MULTILINE)
    if done is None and not any((out / "artifacts").glob("*")):
        kept_log = _keep(log, result.reader, kept)
        result.findings.append(Finding("ended without an input to blame", _tail(log), kept_log))
    spent = float(done[1]) if done else min(seconds, time.monotonic() - started)
    # a process that ends at once must not be started without end
    result.seconds += max(spent, MIN_SHARE_SEC)


def _worker(arguments: Sequence[str], timeout_sec: float, **streams: Any) -> Any:
    """Run a process of ours to its end, with threads that do not get in each other's way.

    Raises:
        subprocess.TimeoutExpired: it took longer.
    """
    return subprocess.run(
        [sys.executable, str(WORKER), *arguments],
        stdin=subprocess.DEVNULL,
        env=os.environ | ONE_THREAD,
        timeout=timeout_sec,
        check=False,
        **streams,
    )


def _collect(result: Result, out: Path, kept: Path) -> None:
    """Move the inputs of findings to where they stay."""
    known = {finding.what for finding in result.findings}
    faults = out / "faults" / "faults.jsonl"
    lines = faults.read_text().splitlines() if faults.exists() else []
    by_kind = {found["kind"]: found for found in map(json.loads, lines)}
    for kind, found in by_kind.items():
        if kind not in known:
            file = _keep(out / "faults" / found["file"], result.reader, kept)
            result.findings.append(Finding(kind, found["message"], file))
    for artifact in sorted((out / "artifacts").glob("*")):
        what = DEADLY.get(artifact.name.partition("-")[0])
        if what is not None:
            file = _keep(artifact, result.reader, kept)
            result.findings.append(Finding(what, _tail(out / "log.txt"), file))


def _keep(file: Path, reader: str, kept: Path) -> str:
    """Copy an input to a name from which its reader is known."""
    target = kept / "fuzz-findings" / f"{reader}--{file.name}"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)
    return str(target)


def _tail(log: Path) -> str:
    """The last words of a process."""
    return log.read_text(errors="replace")[-2000:]


def _count_lines(base: Path, results: Sequence[Result]) -> None:
    """Run the corpora again, in one process that counts lines."""
    arguments = ["lines", str(base), *(result.reader for result in results)]
    try:
        ended = _worker(arguments, START_SEC + 30 * len(results), capture_output=True)
    except subprocess.TimeoutExpired as error:
        sys.stderr.write(f"lines were not counted: {error}\n")
        return
    if ended.returncode:
        sys.stderr.write(f"lines were not counted: {ended.stderr.decode()[-2000:]}\n")
        return
    found = json.loads(ended.stdout.splitlines()[-1])
    for result in results:
        result.lines, result.all_lines = found[result.reader]


def _print_row(result: Result, *, header: bool) -> None:
    """One row of the table as soon as it is known; lines come at the end."""
    if header:
        print(
            f"{'reader':28}{'executions':>11}{'per s':>7}{'edges':>7}{'features':>9}{'faults':>7}"
        )
    rate = result.executions / max(result.seconds, 1e-9)
    print(
        f"{result.reader:28}{result.executions:11}{rate:7.0f}{result.edges:7}{result.features:9}"
        f"{len(result.findings):7}",
        flush=True,
    )


def _report(results: Sequence[Result], *, as_json: bool) -> int:
    """Lines, findings and totals; returns the exit code."""
    for result in results:
        if result.lines is not None and result.all_lines:
            share = result.lines / result.all_lines
            print(f"{result.reader:28}{result.lines:6} of {result.all_lines} lines, {share:.0%}")
    findings = [(result.reader, one) for result in results for one in result.findings]
    for reader, one in findings:
        print(f"\n{reader}: {one.what}\n  {one.message}\n  input: {one.file}")
        print(f"  again: python tools/fuzz.py --reproduce {one.file}")
    executions = sum(result.executions for result in results)
    print(f"\n{executions} executions, {len(findings)} findings")
    if as_json:
        total = {"executions": executions, "findings": len(findings)}
        print(json.dumps({**total, "readers": [asdict(result) for result in results]}))
    return 1 if findings else 0


def _reproduce(parser: argparse.ArgumentParser, file: str) -> int:
    """Feed one saved input in a process of its own; returns 1 if it is still a finding."""
    name, mark, _ = Path(file).name.rpartition("--")
    try:
        find_reader(name)
        known = bool(mark) and Path(file).is_file()
    except LookupError:
        known = False
    if not known:
        parser.error(
            f"--reproduce = {file}; expected a file that this command saved, READER--HASH. Name "
            "it so."
        )
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        try:
            code = _worker(["one", name, file, scratch], START_SEC).returncode
        except subprocess.TimeoutExpired:
            print(f"no end after {START_SEC} s")
            return 1
    if code < 0:
        print(f"the process was ended by signal {-code}")
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
