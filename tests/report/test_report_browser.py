"""The page on a run in a real browser, from the file system: no errors, no requests."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from trainer.report.write import write_comparison, write_report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-quic"),
    *("--disable-extensions", "--disable-dev-shm-usage", "--hide-scrollbars"),
)
"""With these a browser has little to ask for on its own behalf."""
NOBODY = "not an origin"
"""Who asks, in the browser's log, where it is the browser itself and no page."""
LIMIT_SEC = 120

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome on the PATH"),
]


def opened(page: Path, work: Path, width: int) -> tuple[str, list[str], bytes]:
    """A browser's messages, the addresses that the page made it ask for, and a picture."""
    net, picture = work / "net.json", work / "page.png"
    command = [
        *(str(BROWSER), *QUIET, "--enable-logging=stderr", f"--user-data-dir={work / 'profile'}"),
        *(f"--log-net-log={net}", f"--screenshot={picture}", f"--window-size={width},2000"),
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SEC, check=True)
    log = json.loads(net.read_text())
    requests = [event.get("params", {}) for event in log["events"]]
    asked = {one["url"] for one in requests if one.get("initiator", NOBODY) != NOBODY}
    return done.stderr, sorted(asked), picture.read_bytes()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps with everything a page can show."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.yaml").write_text("name: a\n")
    common = {"learning_rate": 1e-3, "grad_norm": 2.0, "tokens": 10, "padding_fraction": 0.1}
    steps = [
        {"step": step, "task": ("ir", "sts")[step % 2], "source": "s", "loss": 1 / (1 + step)}
        | {"seconds": 0.5, "tokens_per_sec": 20.0, "pearson": 0.2, "pro": 0.3, **common}
        for step in range(30)
    ]
    histograms = {kind: list(range(50)) for kind in ("positive", "negative", "random")}
    evaluations = [
        {"step": step, "sets": {"d": {"ndcg_at_10": 0.1 + step / 100}, "p": {"spearman": 0.5}}}
        | {"geometry": {"d": {"alignment": 0.5, "histograms": histograms}}}
        for step in (0, 10, 20, 30)
    ]
    for name, lines in (("metrics", steps), ("eval", evaluations)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder


@pytest.mark.parametrize("width", [360, 1200])
def test_pages_open_without_errors_or_requests(
    run_folder: Path, tmp_path: Path, width: int
) -> None:
    write_report(run_folder)
    several = write_comparison([run_folder, run_folder], tmp_path / "several.html")
    for page in (run_folder / "report.html", several):
        messages, asked, picture = opened(page, tmp_path, width)
        assert "CONSOLE" not in messages, messages
        assert [one for one in asked if not one.startswith("data:")] == []
        assert picture.startswith(b"\x89PNG")


def test_a_page_that_asks_or_fails_is_found_out(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<img src="http://127.0.0.1:9/x.png"><script>throw new Error("no")</script>')
    messages, asked, _ = opened(page, tmp_path, 400)
    assert asked == ["http://127.0.0.1:9/x.png"]
    assert "CONSOLE" in messages
