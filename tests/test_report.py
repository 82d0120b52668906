"""The page on a run: what it says, that it loads nothing, and charts that stay inside."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from trainer.charts import (
    HEIGHT,
    MAX_POINTS,
    WIDTH,
    Axis,
    Series,
    line_chart,
    nice_ticks,
    smoothed,
    thinned,
    tick_label,
)
from trainer.errors import DataError
from trainer.report import duration, read_lines, write_report


def step_line(step: int) -> dict[str, object]:
    return {
        "step": step,
        "task": "sts" if step % 4 == 3 else "ir",
        "source": "s<1>",
        "loss": 5.0 / (step + 1),
        "learning_rate": 1e-3 * (100 - step),
        "grad_norm": 2.0,
        "tokens": 1_000,
        "padding_fraction": 0.1,
        "seconds": 0.5,
        "tokens_per_sec": 2_000.0,
    }


def evaluation(step: int, value: float) -> dict[str, object]:
    return {"step": step, "sets": {"docs": {"ndcg_at_10": value, "recall_at_100": value}}}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text("name: a & b <c>\n")
    lines = [json.dumps(step_line(step)) for step in range(100)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    evaluations = [evaluation(0, 0.1), evaluation(50, 0.3), evaluation(100, 0.35)]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(e) + "\n" for e in evaluations))
    return tmp_path


def test_page_tells_the_run_and_loads_nothing(run_folder: Path) -> None:
    page = write_report(run_folder).read_text()
    assert "100 steps (75 retrieval, 25 similarity)" in page
    assert "0.1 million tokens in 50.0 s of training: 2,000 tokens/s" in page
    row = '<td>docs</td><td class="left">nDCG@10</td><td>0.1000</td><td>0.3500</td>'
    assert row in page
    assert "<td>+0.2500</td>" in page
    assert "name: a &amp; b &lt;c&gt;" in page
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert not list(run_folder.glob(".report*"))


def test_every_chart_is_whole_svg_inside_its_frame(run_folder: Path) -> None:
    page = write_report(run_folder).read_text()
    charts = re.findall(rf'<svg viewBox="0 0 {WIDTH} {HEIGHT}".*?</svg>', page)
    # over the steps, two losses, norm, speed, padding, learning rate
    assert len(charts) == 7
    for chart in charts:
        for path in ElementTree.fromstring(chart).iter("path"):
            numbers = re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.attrib["d"])
            for x, y in numbers:
                assert 0 <= float(x) <= WIDTH
                assert 0 <= float(y) <= HEIGHT


def test_a_run_that_goes_on_has_a_page(run_folder: Path) -> None:
    path = run_folder / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 100, "ta')
    (run_folder / "eval.jsonl").unlink()
    assert len(read_lines(path)) == 100
    assert "The recipe names none." in write_report(run_folder).read_text()


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="output folder of a run"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.02, 0.35), (-3, 7), (5, 5), (0, 0), (1e-9, 2e-9), (0, 123_456)]
)
def test_ticks_are_round_and_hold_the_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    step = ticks[1] - ticks[0]
    # rounding of products of a float step
    assert ticks[0] <= low + 1e-6 * step
    assert ticks[-1] >= high - 1e-6 * step
    assert 2 <= len(ticks) <= 8
    assert float(f"{step:.1g}") == pytest.approx(step, rel=1e-6)


def test_labels_are_short() -> None:
    assert [tick_label(v) for v in (0, 1_200, 0.35, 0.00002)] == ["0", "1,200", "0.35", "2e-05"]


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
