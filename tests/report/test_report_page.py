"""The page on a run: what it says, that it loads nothing, and charts that stay inside."""

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from trainer.errors import DataError
from trainer.report.charts import (
    HEIGHT,
    MAX_POINTS,
    WIDTH,
    Axis,
    Series,
    line_chart,
    look,
    nice_ticks,
    smoothed,
    thinned,
    tick_labels,
)
from trainer.report.read import STEP_KEYS, read_lines
from trainer.report.training import duration
from trainer.report.vector_charts import histogram_chart, lowest_cosine, trade_off_chart
from trainer.report.write import write_comparison, write_report


def step_line(step: int) -> dict[str, object]:
    sts = step % 4 == 3
    terms = {"pearson": 0.2, "rank_kl": None if step == 7 else 0.1} if sts else {"infonce": 1.0}
    return {
        "step": step,
        "task": "sts" if sts else "ir",
        "source": "pairs" if sts else "s<1>",
        "loss": 5.0 / (step + 1),
        **terms,
        "learning_rate": 1e-3 * (100 - step),
        "grad_norm": 2.0,
        "tokens": 1_000,
        "padding_fraction": 0.1,
        "seconds": 0.5,
        "tokens_per_sec": 2_000.0,
    }


def evaluation(step: int, value: float) -> dict[str, object]:
    docs = {"ndcg_at_10": value, "recall_at_100": value}
    histograms = {"positive": [0] * 40 + [5] * 10, "negative": [0] * 50, "random": [2] * 50}
    geometry = {"alignment": value, "effective_rank": 9.5, "histograms": histograms}
    return {
        "step": step,
        "sets": {"docs": docs, "pairs": {"spearman": 1 - value}},
        "geometry": {"docs": geometry},
    }


LOADED = re.compile(r"https?://|<script|<img|src=|@import|url\(|<link (?!rel=.icon. href=.data:,.)")
"""What could make a browser ask somebody else."""
MERGE = {
    "method": "delta",
    "formula": "theta0 + ...",
    "checkpoints": [{"path": "step-<1>"}],
    "tensors": {"layer.0.a.weight": {"norms": [0.5], "weights": [0.75]}},
}
FACTS = {
    "environment": {"ranks": 2, "device": "cpu", "torch": "2.13.0"},
    "num_steps": 200,
    "exposure": [
        {"source": "pairs", "task": "sts", "num_rows": 1600, "steps": 50}
        | {"rows_seen": 3200, "epochs": 2.0, "never": 0, "once": 0, "twice": 1600, "more": 0}
    ],
}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text("name: a & b <c>\n")
    lines = [json.dumps(step_line(step)) for step in range(100)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    evaluations = [evaluation(0, 0.1), evaluation(50, 0.3), evaluation(100, 0.35)]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(e) + "\n" for e in evaluations))
    (tmp_path / "run.json").write_text(json.dumps(FACTS))
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "merge.json").write_text(json.dumps(MERGE))
    return tmp_path


def test_page_tells_where_a_teacher_scored_passages(run_folder: Path) -> None:
    (run_folder / "run.json").write_text(json.dumps(FACTS | {"scored_rows": {"pairs": 1200}}))
    page = write_report(run_folder).read_text()
    assert (
        "rows seen count repeats. A teacher scored passages of pairs (1,200 of 1,600 rows)." in page
    )


def test_page_tells_the_run_and_loads_nothing(run_folder: Path) -> None:
    page = write_report(run_folder).read_text()
    assert "A teacher scored" not in page
    assert "100 steps (75 retrieval, 25 similarity)" in page
    assert "0.1 million tokens in 50.0 s of training: 2,000 tokens/s" in page
    row = '<td class="left">docs</td><td class="left">nDCG@10</td><td>0.1000</td><td>0.3500</td>'
    assert row in page
    assert "<td>+0.2500</td>" in page
    assert "name: a &amp; b &lt;c&gt;" in page
    assert not LOADED.search(page)
    assert not list(run_folder.glob(".report*"))


def test_both_means_and_every_kind_have_a_row(run_folder: Path) -> None:
    page = write_report(run_folder).read_text()
    for label in ("mean of all sets", "mean of kinds"):
        assert f'"left">all</td><td class="left">{label}</td><td>0.5000</td><td>0.5000</td>' in page
    kinds = {
        "classes": {"accuracy": 0.5, "f1_macro": 0.4},
        "more": {"accuracy": 0.75},
        "clusters": {"v_measure": 0.25},
        "twins": {"average_precision": 0.5},
        "candidates": {"map": 0.5, "mrr": 0.6, "ndcg_at_10": 0.7},
        "bitext": {"f1": 1.0},
    }
    line = json.dumps({"step": 100, "sets": kinds}) + "\n"
    (run_folder / "eval.jsonl").write_text(line)
    page = write_report(run_folder).read_text()
    rows = [
        ("classes", "Accuracy", "0.5000"), ("classes", "F1 (macro)", "0.4000"),
        ("clusters", "V-measure", "0.2500"), ("twins", "Average precision", "0.5000"),
        ("candidates", "MAP", "0.5000"), ("candidates", "MRR", "0.6000"),
        ("candidates", "nDCG@10", "0.7000"), ("bitext", "F1", "1.0000"),
        ("all", "mean of all sets", f"{3.5 / 6:.4f}"),
        ("all", "mean of kinds", f"{(0.625 + 0.25 + 0.5 + 0.5 + 1) / 5:.4f}"),
    ]  # fmt: skip
    for name, label, value in rows:
        names = f'<td class="left">{name}</td><td class="left">{label}</td>'
        assert f"{names}<td>{value}</td><td>{value}</td><td>+0.0000</td>" in page


def test_every_chart_is_whole_svg_inside_its_frame(run_folder: Path) -> None:
    page = write_report(run_folder).read_text()
    charts = re.findall(rf'<svg viewBox="0 0 {WIDTH} {HEIGHT}".*?</svg>', page)
    # two sets over the steps, the trade-off, cosines before and after; three losses and terms for
    # similarity and one for retrieval, norm, speed, padding, learning rate
    assert len(charts) == 13
    for chart in charts:
        for path in ElementTree.fromstring(chart).iter("path"):
            numbers = re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.attrib["d"])
            for x, y in numbers:
                assert 0 <= float(x) <= WIDTH
                assert 0 <= float(y) <= HEIGHT


def with_dims(run_folder: Path, dims: dict[str, dict[str, dict[str, float | None]]]) -> None:
    """Give the last evaluation scores of prefixes, and the first ones of half that size."""
    lines = read_lines(run_folder / "eval.jsonl", ())
    lines[-1]["dims"] = dims
    lines[0]["dims"] = {
        name: {size: {m: v and v / 2 for m, v in metrics.items()} for size, metrics in one.items()}
        for name, one in dims.items()
    }
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run_folder / "eval.jsonl").write_text(text)


def test_scores_by_dimension_are_drawn_and_listed(run_folder: Path) -> None:
    before = write_report(run_folder).read_text()
    assert "Shorter vectors" not in before
    docs = {"1024": 0.8, "256": 0.76, "64": None}
    with_dims(run_folder, {
        "docs": {size: {"ndcg_at_10": value, "mrr_at_10": 0.1} for size, value in docs.items()},
        "pairs": {"1024": {"spearman": 0.5}, "64": {"spearman": 0.6}},
    })  # fmt: skip
    page = write_report(run_folder).read_text()
    cells = [
        ("docs", "nDCG@10", "0.8000", "0.7600", "-"),
        ("", "share", "100.0%", "95.0%", "-"),
        ("pairs", "Spearman", "0.5000", "-", "0.6000"),
        ("", "share", "100.0%", "-", "120.0%"),
    ]
    for one, other, *values in cells:
        names = f'<td class="left">{one}</td><td class="left">{other}</td>'
        assert f"<tr>{names}{''.join(f'<td>{value}</td>' for value in values)}</tr>" in page
    drawn = re.findall(r"<figure><figcaption>(\w+), [^<]* by dimensions</figcaption>(.*?)</figure>",
                       page)  # fmt: skip
    assert [name for name, _ in drawn] == ["docs", "pairs"]
    for _, chart in drawn:
        assert chart.count('class="line"') == 2 + 2  # before and after, and in the legend
        svg = ElementTree.fromstring(chart[: chart.index("</svg>") + 6])
        for circle in svg.iter("circle"):
            assert 0 <= float(circle.attrib["cx"]) <= WIDTH
            assert 0 <= float(circle.attrib["cy"]) <= HEIGHT
    assert ">1,024</text>" in drawn[0][1]
    several = write_comparison([run_folder, run_folder], run_folder / "c.html").read_text()
    assert several.count("by dimensions</figcaption>") == 2


def test_prefixes_of_an_undefined_score_are_left_out(run_folder: Path) -> None:
    with_dims(run_folder, {"docs": {"64": {"ndcg_at_10": None}, "8": {"ndcg_at_10": 0.5}}, "x": {}})
    for page in (write_report(run_folder), write_comparison([run_folder], run_folder / "c")):
        assert "by dimensions</figcaption>" not in page.read_text()


def test_equal_ratios_of_dimensions_have_equal_distances() -> None:
    axis = Axis(smooth=False, halves_x=True)
    series = Series(name="s", x=[16, 32, 64, 65], y=[1.0, 2.0, 3.0, 4.0])
    chart = ElementTree.fromstring(line_chart("t", axis, [series]))
    places = [float(circle.attrib["cx"]) for circle in chart.iter("circle")]
    # to a tenth of a unit, as places are written
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.11)
    labels = [text.text for text in chart.iter("text")]
    # of two that would lie over each other, the larger
    assert "65" in labels
    assert "64" not in labels


def test_a_run_that_goes_on_has_a_page(run_folder: Path) -> None:
    path = run_folder / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 100, "ta')
    (run_folder / "eval.jsonl").unlink()
    assert len(read_lines(path, STEP_KEYS)) == 100
    assert "No evaluation was made." in write_report(run_folder).read_text()


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="output folder of a run"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("file", "spoil", "message"),
    [
        (
            "metrics.jsonl",
            lambda b: b.replace(b"{", b"", 1),
            r"metrics.jsonl:1: .*; expected a JSON",
        ),
        ("metrics.jsonl", lambda b: b + b"\0\0\n", r"metrics.jsonl:101: '\\x00\\x00'; expected"),
        ("metrics.jsonl", lambda b: b + b'{"step": 9}\n', r"metrics.jsonl:101: task = missing"),
        ("eval.jsonl", lambda b: b + b"\xff\n", r"eval.jsonl: byte \d+ = 0xff; expected UTF-8"),
        ("recipe.yaml", lambda b: b"\xff", r"recipe.yaml: byte 0 = 0xff"),
        ("recipe.yaml", lambda b: b"a: [", r"recipe.yaml: while parsing .*; expected YAML"),
        ("recipe.yaml", lambda b: b"a: !!int x", r"recipe.yaml: invalid literal .*; expected YAML"),
        ("run.json", lambda b: b[:20], r"run.json: .*; expected a JSON object"),
        ("merged/merge.json", lambda b: b"{}", r"merge.json: method = missing"),
    ],
)
def test_a_damaged_file_is_named(
    run_folder: Path, file: str, spoil: Callable[[bytes], bytes], message: str
) -> None:
    path = run_folder / file
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        write_comparison([run_folder, run_folder], run_folder / "comparison.html")


def test_a_page_that_cannot_be_written_leaves_nothing(run_folder: Path) -> None:
    shutil.rmtree(run_folder / "merged")
    (run_folder / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        write_report(run_folder, run_folder / "taken")
    assert not (run_folder / ".taken").exists()
    command = [sys.executable, "-m", "tools.report", str(run_folder), "--output"]
    told = subprocess.run(
        [*command, str(run_folder / "no" / "page")], capture_output=True, text=True
    )
    assert told.returncode == 2
    assert told.stderr.startswith(f"report: {run_folder / 'no' / '.page'} = No such file")
    done = subprocess.run([*command, str(run_folder / "x.html")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{run_folder / 'x.html'}\n")
    assert not (run_folder / "report.html").exists()


def test_numbers_that_json_lacks_are_left_out(run_folder: Path) -> None:
    with (run_folder / "eval.jsonl").open("a") as file:
        file.write('{"step": 110, "sets": {"docs": {"ndcg_at_10": NaN}}}\n')
    for page in (write_report(run_folder), write_comparison([run_folder] * 2, run_folder / "c")):
        assert "nan" not in page.read_text()
        assert "<td>-</td>" in page.read_text()


def test_runs_are_named_apart(run_folder: Path, tmp_path: Path) -> None:
    folders = [tmp_path / one / "out" for one in ("a", "b")]
    for folder in folders:
        shutil.copytree(run_folder, folder, ignore=shutil.ignore_patterns("a", "b"))
    page = write_comparison(folders, tmp_path / "c.html").read_text()
    for name in ("a/out", "b/out"):
        assert f'<td class="left">{name}</td><td>100</td>' in page


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1), (0.02, 0.35), (-3, 7), (5, 5), (0, 0), (1e-9, 2e-9), (0, 123_456), (0.6441, 0.6448)],
)
def test_ticks_are_round_and_hold_the_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    step = ticks[1] - ticks[0]
    # rounding of products of a float step
    assert ticks[0] <= low + 1e-6 * step
    assert ticks[-1] >= high - 1e-6 * step
    assert 2 <= len(ticks) <= 8
    assert float(f"{step:.1g}") == pytest.approx(step, rel=1e-6)


@pytest.mark.parametrize("value", [1e-4, 2e-5, 0.1, 0.9999999999999999, 5e300])
def test_values_that_differ_by_rounding_have_a_chart(value: float) -> None:
    for steps in (2, 401, 2402):
        # thinned to means, of which the last may be one of fewer values
        same = Series(name="s", x=range(steps), y=[value] * steps)
        assert "nan" not in line_chart("t", Axis(), [same])
        next_to = Series(
            name="s", x=range(steps), y=[value, *[math.nextafter(value, 2)] * (steps - 1)]
        )
        assert "nan" not in line_chart("t", Axis(), [next_to])
    ticks = nice_ticks(value, math.nextafter(value, 2))
    assert len(set(ticks)) == len(ticks) >= 2


def test_labels_are_short_and_differ() -> None:
    assert tick_labels((0, 1_200, 0.35, 0.00002)) == ["0", "1,200", "0.35", "2e-05"]
    close = (0.6441, 0.6442, 0.6443)
    assert tick_labels(close) == ["0.6441", "0.6442", "0.6443"]
    assert tick_labels((5_000.0, 5_000.5)) == ["5,000.0", "5,000.5"]


def test_many_lines_look_different() -> None:
    assert len({look(number) for number in range(49)}) == 49
    assert look(0) != look(7)


def test_long_series_are_thinned_to_means() -> None:
    thin = thinned(Series(name="s", x=range(10_000), y=range(10_000)))
    assert len(thin.x) <= MAX_POINTS
    assert thin.y[0] == 12  # the mean of 0..24
    assert thin.x == thin.y


def test_smoothing_keeps_lines_and_ends() -> None:
    line = Series(name="s", x=range(200), y=range(200))
    # a symmetric mean of a straight line is the line; float rounding of sums
    assert smoothed(line).y == pytest.approx(list(range(200)), abs=1e-9)


def test_logarithmic_axis_has_powers_of_ten() -> None:
    series = Series(name="s", x=range(3), y=[1.0, 10.0, 1000.0])
    chart = line_chart("t", Axis(logarithmic=True), [series])
    for label in (">1<", ">10<", ">100<", ">1,000<"):
        assert label in chart


def test_logarithmic_axis_within_a_power_of_ten_still_has_ticks() -> None:
    series = Series(name="s", x=range(2), y=[100.0, 100.0])
    assert "NaN" not in line_chart("t", Axis(logarithmic=True), [series])


def test_durations() -> None:
    assert [duration(s) for s in (3.21, 75, 7_300)] == ["3.2 s", "1 min 15 s", "2 h 1 min"]


def test_page_shows_data_geometry_merge_and_environment(run_folder: Path) -> None:
    page = write_report(run_folder).read_text()
    # 25 of the 50 steps of the source were taken
    row = '<td class="left">pairs</td><td class="left">similarity</td><td>1,600</td><td>50</td>'
    assert f"{row}<td>25</td><td>3,200</td><td>2.00</td><td>0</td>" in page
    row = '<td class="left">alignment</td><td>0.100</td><td>0.350</td><td>+0.250</td>'
    assert row in page
    assert "docs, cosines at the start" in page
    assert "docs, cosines after 100 steps" in page
    assert "step-&lt;1&gt;" in page
    assert "weight 0.7500" in page
    assert '<td class="left">torch</td><td class="left">2.13.0</td>' in page
    for term in ("Pearson, similarity", "RankKL, similarity"):
        assert f"<figcaption>{term}" in page


def test_a_page_of_a_run_without_extras_leaves_their_sections_out(run_folder: Path) -> None:
    (run_folder / "run.json").unlink()
    (run_folder / "merged" / "merge.json").unlink()
    lines = read_lines(run_folder / "eval.jsonl", ())
    bare = [json.dumps({"step": line["step"], "sets": line["sets"]}) + "\n" for line in lines]
    (run_folder / "eval.jsonl").write_text("".join(bare))
    page = write_report(run_folder).read_text()
    for title in ("Data", "Geometry", "Merge", "Environment"):
        assert f"<h2>{title}</h2>" not in page


def test_runs_side_by_side(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    for name in ("metrics.jsonl", "eval.jsonl"):
        (other / name).write_text((run_folder / name).read_text())
    (other / "recipe.yaml").write_text("name: b\ntrain: {learning_rate: 1e-5}\n")
    page = write_comparison([run_folder, other], other / "comparison.html").read_text()
    assert not LOADED.search(page)
    for folder in (run_folder, other):
        assert f'<td class="left">{folder.name}</td><td>100</td><td>0.3500</td>' in page
    assert '<td class="left">train.learning_rate</td><td class="left">-</td>' in page
    assert "Gradient norm before clipping, retrieval" in page
    # one line of each run in each chart
    chart = page[page.index("<figcaption>docs, nDCG@10") :]
    assert chart[: chart.index("</svg>")].count('class="line"') == 2


def test_a_path_may_turn_back_and_stays_inside() -> None:
    path = Series(name="a", x=[0.2, 0.3, 0.1], y=[0.5, 0.4, 0.6])
    chart = trade_off_chart("t", ("right", "up"), [path])
    assert chart.count("<circle") == 3
    places = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart)
    assert all(0 < float(x) < WIDTH and 0 < float(y) < HEIGHT for x, y in places)


def test_histograms_leave_out_empty_cosines_below() -> None:
    counts = {"positive": [0] * 25 + [1] * 25, "negative": [0] * 50, "random": [0] * 49 + [3]}
    chart = histogram_chart("t", counts, low=lowest_cosine([counts]))
    assert chart.count('class="line"') == 2
    assert ">-0.5<" not in chart
    assert ">100%<" in chart
    wide = {"random": [1] * 50}
    # before and after are drawn alike, so that they can be compared
    assert lowest_cosine([counts, wide]) == -1
    assert ">-1<" in histogram_chart("t", counts, low=-1)
