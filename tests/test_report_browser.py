"""The HTML report in a real browser: nothing overflows, every player has a duration, nothing is reported as an error.

A script that no report has is added to a copy of the page; it waits for pictures and players and writes what it
finds into the document, which the browser then prints. Skipped where no Chromium is installed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from mimi_export.contract.report import Heard
from mimi_export.media.signals import speech_like
from mimi_export.parity.checks import DEFAULT_BUDGETS, judge
from mimi_export.parity.clips import Clip
from mimi_export.parity.measure import measure
from mimi_export.parity.reports import html as report_html
from mimi_export.parity.results import ParityRun

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--virtual-time-budget=20000",
)  # fmt: skip
PROBE = """<script>
const ready = element => new Promise(done => {
  if (element.tagName === 'IMG' ? element.complete : element.readyState > 0) return done();
  for (const name of ['load', 'loadedmetadata', 'error']) element.addEventListener(name, done);
});
const pictures = [...document.querySelectorAll('img')], players = [...document.querySelectorAll('audio')];
for (const part of document.querySelectorAll('details')) part.open = true;
Promise.all([...pictures, ...players].map(ready)).then(() => {
  const found = {
    width: document.documentElement.scrollWidth, window: window.innerWidth,
    pictures: pictures.map(p => p.naturalWidth), durations: players.map(p => p.duration),
    errors: players.filter(p => p.error).length,
    cut: [...document.querySelectorAll('td.why')].filter(c => c.getBoundingClientRect().right > innerWidth).length,
    paper: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
    verdict: document.querySelector('.verdict').getBoundingClientRect().bottom,
    title: document.title,
  };
  const note = document.createElement('pre');
  note.id = 'probe';
  note.textContent = JSON.stringify(found);
  document.body.append(note);
});
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    for name in BROWSERS:
        path = shutil.which(name)
        if path:
            return path
    pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")


@pytest.fixture(scope="module")
def page(tiny_variant, tiny_checkpoint, tmp_path_factory) -> Path:
    clips = [Clip("speech", speech_like(2.0, 1)), Clip("silence", np.zeros(24000, np.float32), stress=True)]
    report = measure(tiny_variant(8), tiny_checkpoint, clips, (1,), lambda text: None)
    report.checks = judge(report, DEFAULT_BUDGETS["fp32"])
    words = "a listener would notice a difference only in direct comparison"
    report.heard = [Heard("beside the recording", 0.98, 4.7, 4.2, words)]
    path = tmp_path_factory.mktemp("page") / "report.html"
    text = report_html.to_text(ParityRun([report, report]))
    path.write_text(text.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    return path


def look(browser: str, page: Path, width: int, dark: bool) -> tuple[dict, str]:
    """What the probe found, and what the browser had to say."""
    with tempfile.TemporaryDirectory() as profile:
        scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        arguments = [f"--user-data-dir={profile}", f"--window-size={width},900", scheme, "--dump-dom", page.as_uri()]
        run = subprocess.run([browser, *FLAGS, *arguments], capture_output=True, text=True, timeout=120, check=False)
    match = re.search(r'<pre id="probe">(.*?)</pre>', run.stdout, re.DOTALL)
    assert match, f"the page did not finish loading: {run.stderr[-500:]}"
    return json.loads(match[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&")), run.stderr


def brightness(colour: str) -> float:
    return sum(float(value) for value in re.findall(r"[\d.]+", colour)[:3]) / 3


@pytest.mark.parametrize("width", [500, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_page(browser, page, width, dark):
    found, log = look(browser, page, width, dark)
    assert found["width"] <= found["window"]  # tables scroll in their own boxes
    assert found["cut"] == 0  # sentences can be read without scrolling
    assert found["verdict"] < 900  # on the first screen
    assert found["title"] == "Parity: passed, 2 variants"
    assert len(found["durations"]) == 8
    assert found["durations"][:4] == pytest.approx([2.0] * 4, abs=0.09)  # whole frames
    assert found["durations"][4:] == pytest.approx([1.0] * 4, abs=0.09)
    assert found["errors"] == 0
    assert min(found["pictures"]) > 1
    assert (brightness(found["paper"]) < brightness(found["ink"])) == dark
    assert "CONSOLE" not in log
