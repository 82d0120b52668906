"""One process of `tools/fuzz.py`: it may die of an input; what it found until then is on disk.

`fuzzing/worker.py fuzz|one|lines ...`; the arguments are those of the functions of these names.
"""

import contextlib
import faulthandler
import hashlib
import json
import logging
import os
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fuzzing.mutate import mutate  # noqa: E402
from fuzzing.targets import Reader, find_reader, join  # noqa: E402

LIMIT_SEC = 2.0
"""Of processor time for an input: other programs on the machine do not count."""
LIMIT_BYTES = 512 << 20
"""Memory that an input may add to what the process has."""
RESERVE_BYTES = 2 << 30
"""Address space that an input may ask for; beyond it there is a MemoryError and no dead machine."""
HANG_SEC = 30
"""Of wall time; libFuzzer ends the process after it."""
MAX_INPUT_BYTES = 16 << 10
LINES_SEC = 10.0
"""How long the inputs of one reader are run again to count lines."""
INSTRUMENTED = ["trainer", "yaml"]
"""Packages whose branches guide the fuzzer, besides torch's reader of pickles."""


class LimitError(Exception):
    """An input took too long or too much."""


@dataclass
class LimitWatch:
    """Feeds a reader and writes down each kind of fault with the shortest input that has it."""

    reader: Reader
    folder: Path
    """For the files of an input."""
    faults: Path
    """Folder for inputs, and `faults.jsonl`."""
    limit_sec: float = LIMIT_SEC
    """Of processor time for an input."""
    shortest: dict[str, int] = field(default_factory=dict)
    """Bytes of the shortest input by kind of fault."""

    def feed(self, data: bytes) -> None:
        """One input; faults of the reader do not end the process."""
        try:
            self.check(data)
        except Exception as fault:  # noqa: BLE001 - whatever comes out of a reader is a finding
            self.keep(data, fault)

    def check(self, data: bytes) -> None:
        """Feed the reader and hold it to the limits.

        Raises:
            LimitError: it took too much time or memory.
            Exception: whatever else the reader raised but TrainerError.
        """
        seconds, num_bytes = self.measure(data)
        if seconds > self.limit_sec:
            # once more, as what was done for the first time, such as an import, does not count
            seconds, _ = self.measure(data)
        if seconds > self.limit_sec:
            expected = f"at most {self.limit_sec:g} s"
            raise LimitError(f"{seconds:.1f} s of processor time; expected {expected}")
        if num_bytes > LIMIT_BYTES:
            raise LimitError(
                f"{num_bytes >> 20} MiB of memory; expected at most {LIMIT_BYTES >> 20}"
            )

    def measure(self, data: bytes) -> tuple[float, int]:
        """Processor time, seconds, and memory that was added at its peak, bytes."""
        from trainer.errors import TrainerError

        forget_peak()
        before, started = peak_bytes(), time.process_time()
        with contextlib.suppress(TrainerError):
            self.reader.feed(data, self.folder)
        return time.process_time() - started, peak_bytes() - before

    def keep(self, data: bytes, fault: Exception) -> None:
        """Save the input, unless a shorter one of the same kind is there."""
        where = place_of(fault)
        kind = f"{type(fault).__name__} {where}"
        if len(data) >= self.shortest.get(kind, len(data) + 1):
            return
        self.shortest[kind] = len(data)
        name = hashlib.sha256(kind.encode()).hexdigest()[:12]
        self.faults.mkdir(parents=True, exist_ok=True)
        (self.faults / name).write_bytes(data)
        entry = {"kind": kind, "file": name, "message": ascii(str(fault))[:300]}
        with (self.faults / "faults.jsonl").open("a") as lines:
            lines.write(json.dumps(entry) + "\n")


def place_of(fault: Exception) -> str:
    """File and line of the innermost frame of this project, from where a fault came."""
    # a message that was found wanting came from where its error was raised
    source = fault.__cause__ if isinstance(fault, AssertionError) else None
    frames = traceback.extract_tb((source or fault).__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(str(ROOT / "trainer"))]
    frame = (ours or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def forget_peak() -> None:
    """Let the peak of memory be what it is now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Most memory that this process had since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def limit_address_space() -> None:
    """Refuse memory far beyond what the process has now."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + RESERVE_BYTES, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class _Formatting(logging.Handler):
    """Formats what is logged and drops it; a message that cannot be formatted is a fault."""

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()


def prepare(folder: Path) -> None:
    """Caches of its own, no network, no log."""
    os.environ["TRAINER_CACHE_DIR"] = str(folder / "cache")
    os.environ["HF_DATASETS_CACHE"] = str(folder / "datasets")
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    root = logging.getLogger()
    root.handlers = [_Formatting()]
    logging.getLogger("trainer").setLevel(logging.INFO)


def fuzz(name: str, out: str, seconds: str, seed: str) -> int:
    """Fuzz one reader; the process ends in libFuzzer.

    Args:
        name: of the reader.
        out: folder with `corpus`; gets `faults` and libFuzzer's `artifacts`.
        seconds: how long.
        seed: of all choices.
    """
    import atheris

    place = Path(out)
    prepare(place / "files")
    with atheris.instrument_imports(include=[*INSTRUMENTED, name.partition(":")[0]]):
        reader = find_reader(name)
        watch = LimitWatch(reader, place / "files", place / "faults")
        # once before the limits: what a reader needs is imported with its first input
        for one in reader.seeds():
            watch.feed(join(one))
    unpickler = sys.modules.get("torch._weights_only_unpickler")
    if unpickler is not None:
        for function in (unpickler.Unpickler.load, unpickler.get_globals_in_pkl):
            atheris.instrument_func(function)
    watch.shortest.clear()

    def feed(data: bytes) -> None:
        # anew for each input: what a process of many inputs has grown by is no fault of the next
        limit_address_space()
        watch.feed(data)

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        return changed(reader, data, random.Random(seed), atheris.Mutate, max_size)

    (place / "artifacts").mkdir(exist_ok=True)
    flags = {
        "max_total_time": seconds, "seed": seed, "timeout": HANG_SEC, "rss_limit_mb": 0,
        "max_len": MAX_INPUT_BYTES, "len_control": 0, "print_final_stats": 1,
        "report_slow_units": 10 * HANG_SEC, "artifact_prefix": f"{place}/artifacts/",
    }  # fmt: skip
    argv = [sys.argv[0], *(f"-{key}={value}" for key, value in flags.items())]
    atheris.Setup([*argv, str(place / "corpus")], feed, custom_mutator=change)
    atheris.Fuzz()
    return 0


def changed(
    reader: Reader,
    data: bytes,
    rng: random.Random,
    native: Callable[[bytes, int], bytes],
    max_size: int,
) -> bytes:
    """Another input: one of its files is another, is gone, or comes from a seed."""
    parts = reader.split(data)
    at = rng.randrange(len(parts))
    if len(parts) > 1 and rng.random() < 0.1:
        parts[at] = b"" if parts[at] else rng.choice(list(reader.seeds()))[at]
    else:
        for _ in range(rng.choice((1, 1, 2, 4))):
            parts[at] = mutate(reader.files[at], parts[at], rng, native, max_size)
    found = join(parts)
    return found if len(found) <= max_size else native(data, max_size)


def one(name: str, file: str, folder: str) -> int:
    """Feed one input and say how it ended; returns 1 for a fault, else 0.

    Args:
        name: of the reader.
        file: the input.
        folder: to work in.
    """
    from trainer.errors import TrainerError

    place = Path(folder)
    prepare(place)
    reader = find_reader(name)
    watch = LimitWatch(reader, place, place)
    for seed in reader.seeds():
        watch.feed(join(seed))
    limit_address_space()
    data = Path(file).read_bytes()
    faulthandler.enable()
    faulthandler.dump_traceback_later(HANG_SEC, exit=True)
    try:
        watch.check(data)
        reader.feed(data, place)
    except TrainerError as error:
        print(f"refused, as it may be: {error}")
        return 0
    except Exception:  # noqa: BLE001 - shown to the user, who asked for it
        traceback.print_exc()
        return 1
    print("read without a fault")
    return 0


def lines(folder: str, *names: str) -> int:
    """Print how many lines of each reader's modules its inputs reach, as one JSON object.

    Args:
        folder: holds `<reader>/corpus`.
        names: of the readers.
    """
    prepare(Path(folder) / "files")
    found = {}
    for name in names:
        reader = find_reader(name)
        inputs = sorted((Path(folder) / name / "corpus").iterdir())
        found[name] = lines_reached(reader, inputs, Path(folder) / "files" / reader.name)
    print(json.dumps(found))
    return 0


def lines_reached(reader: Reader, inputs: Sequence[Path], folder: Path) -> tuple[int, int]:
    """Lines of code in a reader's modules that inputs reach, and all there are."""
    files = [ROOT / f"{module.replace('.', '/')}.py" for module in reader.modules]
    known = {(str(file), line) for file in files for line in lines_of(file)}
    reached: set[tuple[str, int]] = set()
    names = set(map(str, files))

    def in_frame(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            reached.add((frame.f_code.co_filename, frame.f_lineno))
        return in_frame

    def at_call(frame: FrameType, _: str, __: Any) -> Any:
        return in_frame if frame.f_code.co_filename in names else None

    watch = LimitWatch(reader, folder, folder / "faults")
    # once before the count: torch ends tracing while it is imported
    for seed in reader.seeds():
        watch.feed(join(seed))
    deadline = time.monotonic() + LINES_SEC
    sys.settrace(at_call)
    try:
        for file in inputs:
            watch.feed(file.read_bytes())
            if time.monotonic() > deadline:
                break
    finally:
        sys.settrace(None)
    return len(reached & known), len(known)


def lines_of(file: Path) -> set[int]:
    """Lines inside the functions of a file; what runs at import has run anyway."""
    module = compile(file.read_text(), str(file), "exec")
    return {line for code in _functions(module) for _, _, line in code.co_lines()
            if line is not None and line != code.co_firstlineno}  # fmt: skip


def _functions(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_flags & 0x2:  # CO_NEWLOCALS: a function, not the body of a class
                yield constant
            yield from _functions(constant)


COMMANDS: dict[str, Callable[..., int]] = {"fuzz": fuzz, "one": one, "lines": lines}

if __name__ == "__main__":
    sys.exit(COMMANDS[sys.argv[1]](*sys.argv[2:]))
