"""Choose a merge by its scores on held-out sets; it must not embed or read sets itself.

One thing is changed at a time: first the inputs as they are, then methods, then whom the best
favours, then how far it goes from the base, then how far at which depth. So a search is tens of
merges at most, and its result scores no worse than any input on the sets it was given; or, where it
must keep the base's score on each of them, than any input that does.
"""

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from trainer.checkpoint.open import open_checkpoint
from trainer.errors import CheckpointError
from trainer.merge.depth import layer_of
from trainer.merge.driver import MergeReport, Progress, merge_checkpoints
from trainer.merge.settings import MergeSettings, check_settings
from trainer.merge.spherical import SPHERICAL

logger = logging.getLogger(__name__)

Results = Mapping[str, Mapping[str, float]]
"""Metrics by set, the main one of each first; NaN where one is not defined."""
Score = Callable[[Path], Results]
"""Scores a merged folder on the held-out sets."""

RECORD = "search.json"
"""What was tried, in the folder of the result."""
SCALES = (0.5, 0.75, 1.25)
"""lambda, besides 1."""
DEPTHS = ((1.5, 0.5), (2.0, 0.5), (2.0, 0.0), (0.5, 1.5))
"""Factors of lambda from the first layer to the last."""
FAVOURED = 0.75
"""Share of the weight that a favoured checkpoint gets; the others share the rest."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A merge that may be the best."""

    name: str
    """For a person."""
    inputs: tuple[int, ...]
    """Which of the checkpoints, from 0."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `MergeSettings`: method, and what belongs to it."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A candidate with its scores."""

    candidate: Candidate
    results: Results
    value: float
    """Mean over kinds of the mean of each kind's sets."""
    seconds: float
    """Wall time of merging and scoring."""


@dataclass(frozen=True, kw_only=True)
class SearchReport:
    """What a search found."""

    tried: tuple[Tried, ...]
    """In the order in which they were tried."""
    best: Tried
    """Of equal ones the first."""
    merged: MergeReport
    """The best one, merged into the output."""


def mean_of_kinds(results: Results, kinds: Mapping[str, str]) -> float:
    """The number that a search raises.

    Args:
        results: metrics by set.
        kinds: kind of each set.

    Returns:
        Mean over kinds of the mean over each kind's sets of their main metrics.
    """
    means = by_kind(results, kinds).values()
    return fmean(means)


def by_kind(results: Results, kinds: Mapping[str, str]) -> dict[str, float]:
    """Mean of the main metrics of each kind's sets, in the order of the sets."""
    found: dict[str, list[float]] = {}
    for name, metrics in results.items():
        found.setdefault(kinds[name], []).append(_main(metrics))
    return {kind: fmean(values) for kind, values in found.items()}


@dataclass(frozen=True, kw_only=True)
class MergeSearch:
    """One search."""

    base: Path
    checkpoints: Sequence[Path]
    output: Path
    """Folder to make; it appears complete or not at all."""
    settings: MergeSettings
    """Dtype and limits of all merges; method, weights and lambda are what is searched."""
    kinds: Mapping[str, str]
    """Kind of each held-out set, by its name."""
    score: Score
    sets: Sequence[str] = ()
    """Where the held-out sets are: an interrupted search goes on with the same ones alone."""
    keep_base: bool = False
    """Choose among what scores below the base on no set."""
    resume: bool = False
    """Go on with what an interrupted search of the same inputs and sets has tried."""
    finish: Callable[[Path], None] = lambda folder: None
    """Called with the folder of the result, all else done, before it gets its name."""

    @property
    def work(self) -> Path:
        """Folder of the search, beside the output; it is gone when the output is there."""
        return self.output.with_name(f".search-{self.output.name}")

    def run(self, progress: Progress = lambda done, total: None) -> SearchReport:
        """Try all stages, and merge the best candidate into the output.

        Args:
            progress: of each merge.

        Raises:
            CheckpointError: if inputs, settings, memory or disk do not allow it, or another search
                left its folder; then no output is left.
        """
        self._check()
        known = self._begin()
        tried: list[Tried] = []
        for stage in STAGES if self._is_layered() else FLAT_STAGES:
            for candidate in stage(len(self.checkpoints), self._best(tried)):
                found = known.get(candidate.name) or self._try(candidate, progress)
                tried.append(found)
                self._say(found, len(tried))
        best = self._best([one for one in tried if not self.falls(one, tried[0])])
        assert best is not None
        settings = replace(self.settings, **best.candidate.options)
        record = self.record(tried, best)

        def finish(folder: Path) -> None:
            (folder / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
            self.finish(folder)

        inputs = [self.checkpoints[index] for index in best.candidate.inputs]
        merged = merge_checkpoints(
            self.base, inputs, self.output, settings, progress=progress, finish=finish
        )
        shutil.rmtree(self.work, ignore_errors=True)
        return SearchReport(tried=tuple(tried), best=best, merged=merged)

    def record(self, tried: Sequence[Tried], best: Tried) -> dict[str, Any]:
        """What was tried, for `search.json`."""
        return {
            "base": str(self.base),
            "checkpoints": [str(path) for path in self.checkpoints],
            "kinds": dict(self.kinds),
            "keep_base": self.keep_base,
            "best": best.candidate.name,
            "tried": [_as_line(one) for one in tried],
        }

    def falls(self, one: Tried, base: Tried) -> bool:
        """Whether a candidate may not be chosen: a set has less than the base's score, or none."""
        return self.keep_base and any(
            not _main(one.results[name]) >= _main(metrics)
            for name, metrics in base.results.items()
            if not math.isnan(_main(metrics))
        )

    def _is_layered(self) -> bool:
        """Whether tensors can be told apart by depth."""
        names = open_checkpoint(self.base).plain
        return any(layer_of(name) is not None for name in names)

    def _check(self) -> None:
        """Refuse what would fail after the first hours."""
        check_settings(self.settings, len(self.checkpoints))
        if self.output.exists():
            raise CheckpointError(
                f"{self.output}: folder = exists; expected a new one. Give another --output, or "
                "remove it."
            )

    def _begin(self) -> dict[str, Tried]:
        """Make the folder of the search; gives what an interrupted one has tried, by name."""
        head = self._identity()
        file = self.work / "tried.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        if self.work.exists() and not self.resume:
            raise CheckpointError(
                f"{self.work}: folder = exists, of an interrupted search; expected none. Go on "
                "with --resume, or remove it."
            )
        if lines and json.loads(lines[0]) != head:
            raise CheckpointError(
                f"{file}: search = of other inputs or sets; expected those of this one. Give what "
                f"it was given, or remove {self.work}."
            )
        known = [*map(_from_line, _whole(lines[1:]))]
        self.work.mkdir(parents=True, exist_ok=True)
        kept = [head, *map(_as_line, known)]
        file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        return {one.candidate.name: one for one in known}

    def _identity(self) -> dict[str, Any]:
        """What scores depend on."""
        paths = [str(path.absolute()) for path in (self.base, *self.checkpoints)]
        kept = ("dtype", "density", "alpha", "allow_nan")
        settings = {name: getattr(self.settings, name) for name in kept}
        sets = {"kinds": dict(self.kinds), "sets": list(self.sets)}
        return {"paths": paths, **sets, "settings": settings}

    def _try(self, candidate: Candidate, progress: Progress) -> Tried:
        """Merge a candidate, score it, and note the result."""
        begun = time.monotonic()
        folder = self.work / "candidate"
        shutil.rmtree(folder, ignore_errors=True)
        settings = replace(self.settings, durable=False, hash_files=False, **candidate.options)
        inputs = [self.checkpoints[index] for index in candidate.inputs]
        merge_checkpoints(self.base, inputs, folder, settings, progress=progress)
        results = self.score(folder)
        shutil.rmtree(folder, ignore_errors=True)
        found = Tried(
            candidate=candidate,
            results=results,
            value=mean_of_kinds(results, self.kinds),
            seconds=time.monotonic() - begun,
        )
        with (self.work / "tried.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(_as_line(found)) + "\n")
        return found

    def _best(self, tried: Sequence[Tried]) -> Tried | None:
        """The first of those with the highest value; None before any."""
        return max(tried, key=_rank, default=None)

    def _say(self, found: Tried, number: int) -> None:
        means = ", ".join(
            f"{kind} {value:.4f}" for kind, value in by_kind(found.results, self.kinds).items()
        )
        logger.info("%d: %s: %.4f (%s)", number, found.candidate.name, found.value, means)


def _main(metrics: Mapping[str, float]) -> float:
    """The main metric of a set."""
    return next(iter(metrics.values()))


def _rank(found: Tried) -> float:
    """By what candidates are ordered: one whose score is not defined is below all others."""
    return -math.inf if math.isnan(found.value) else found.value


def _inputs(count: int, best: Tried | None) -> Iterator[Candidate]:
    """The base and each checkpoint."""
    everything = tuple(range(count))
    yield Candidate(name="base", inputs=everything, options={"method": "uniform", "lambda_": 0.0})
    for index in everything:
        name = f"checkpoint {index + 1}"
        yield Candidate(name=name, inputs=(index,), options={"method": "uniform"})


def _methods(count: int, best: Tried | None) -> Iterator[Candidate]:
    """All methods with their usual settings."""
    if count < 2:
        return
    everything = tuple(range(count))
    named: dict[str, dict[str, Any]] = {
        "uniform": {"method": "uniform"},
        "delta, alpha 1": {"method": "delta", "alpha": 1.0},
        "delta, alpha -1": {"method": "delta", "alpha": -1.0},
        "ties": {"method": "ties"},
        "slerp": {"method": "slerp" if count == 2 else "multi_slerp"},
    }
    for name, options in named.items():
        yield Candidate(name=name, inputs=everything, options=options)


def _favoured(count: int, best: Tried | None) -> Iterator[Candidate]:
    """More weight for each checkpoint in turn."""
    for index in range(count) if count > 1 else ():
        rest = (1 - FAVOURED) / (count - 1)
        weights = tuple(FAVOURED if k == index else rest for k in range(count))
        options = {"method": "task_arithmetic", "weights": weights}
        name = f"{FAVOURED:g} of checkpoint {index + 1}"
        yield Candidate(name=name, inputs=tuple(range(count)), options=options)


def _scales(count: int, best: Tried | None) -> Iterator[Candidate]:
    """The best so far, if it adds changes, less or more of them."""
    for scale in SCALES if _adds(best) else ():
        yield _changed(best, f"lambda {scale:g}", lambda_=scale)


def _depths(count: int, best: Tried | None) -> Iterator[Candidate]:
    """The best so far, if it adds changes, further in some layers and less far in others."""
    for by_depth in DEPTHS if _adds(best) else ():
        first, last = by_depth
        yield _changed(best, f"by depth {first:g} to {last:g}", by_depth=by_depth)


def _adds(best: Tried | None) -> bool:
    """Whether it is the base with changes of some size."""
    assert best is not None
    options = best.candidate.options
    return options["method"] not in SPHERICAL and options.get("lambda_") != 0


def _changed(best: Tried | None, word: str, **options: Any) -> Candidate:
    """The best so far with other options."""
    assert best is not None
    one = best.candidate
    return Candidate(
        name=f"{one.name}, {word}", inputs=one.inputs, options={**one.options, **options}
    )


Stage = Callable[[int, Tried | None], Iterator[Candidate]]
"""From the number of checkpoints and the best so far to what is tried next."""
FLAT_STAGES: tuple[Stage, ...] = (_inputs, _methods, _favoured, _scales)
STAGES = (*FLAT_STAGES, _depths)
"""Of models whose layers have numbers."""


def _as_line(found: Tried) -> dict[str, Any]:
    """As JSON has it: None for what is not defined."""
    results = {
        name: {key: None if math.isnan(value) else value for key, value in metrics.items()}
        for name, metrics in found.results.items()
    }
    value = None if math.isnan(found.value) else found.value
    return {**asdict(found.candidate), "value": value, "seconds": found.seconds, "sets": results}


def _from_line(line: Mapping[str, Any]) -> Tried:
    """The reverse."""
    options = dict(line["options"])
    for name in ("weights", "by_depth"):
        if name in options:
            options[name] = tuple(options[name])
    results = {
        name: {key: math.nan if value is None else value for key, value in metrics.items()}
        for name, metrics in line["sets"].items()
    }
    return Tried(
        candidate=Candidate(name=line["name"], inputs=tuple(line["inputs"]), options=options),
        results=results,
        value=math.nan if line["value"] is None else line["value"],
        seconds=line["seconds"],
    )


def _whole(lines: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Lines that were written to their end."""
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            return
