"""The four forms of a report, from measured results and from made-up ones with every corner in them."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from mimi_export.contract.report import level, read_report
from mimi_export.media.signals import speech_like
from mimi_export.parity.checks import DEFAULT_BUDGETS, judge
from mimi_export.parity.clips import Clip
from mimi_export.parity.measure import measure
from mimi_export.parity.reports import FILES, charts, junit, tables, write_reports
from mimi_export.parity.reports import html as report_html
from mimi_export.parity.reports import json as report_json
from mimi_export.parity.reports import markdown as report_md
from mimi_export.parity.results import Check, Explanation, NotMeasured, ParityRun, number

EVIL = '<script>alert("x")</script> & | more'


@pytest.fixture(scope="module")
def good(tiny_variant, tiny_checkpoint) -> ParityRun:
    clips = [Clip("speech", speech_like(3.0, 1)), Clip("quiet", np.zeros(2000, np.float32), stress=True)]
    report = measure(tiny_variant(8), tiny_checkpoint, clips, (1, "mixed"), lambda text: None)
    report.checks = judge(report, DEFAULT_BUDGETS["fp32"])
    return ParityRun([report])


@pytest.fixture(scope="module")
def bad(good) -> ParityRun:
    """The same with a missed budget, an explanation, infinities, markup in names, and something not measured."""
    right = good.reports[0]
    clip = replace(right.clips[0], name=EVIL, end_to_end=replace(right.clips[0].end_to_end, snr_db=-math.inf))
    clip.timeline.verdict[0, 0] = 3
    check = Check("decoder_snr_db", 31.9, "at least 110", False, "worst clip " + EVIL, "because")
    place = Explanation("decoder", "transformer_0", 1, 3, 19.2, "the state value_1 is read in place of value_0")
    report = replace(right, name="broken", clips=[clip, right.clips[1]], checks=[check], explanations=[place])
    right = replace(right, clips=[replace(right.clips[0], name=EVIL), right.clips[1]])
    return ParityRun([right, report], [NotMeasured("nothing", "there is no directory nothing")])


def test_json_has_no_infinity_and_says_what_it_is(good, bad):
    def refuse(name: str) -> None:
        pytest.fail(f"{name} is no JSON")

    content = json.loads(report_json.to_text(bad), parse_constant=refuse)
    assert content["format_version"] == 1
    assert content["passed"] is False
    assert content["not_measured"] == [{"directory": "nothing", "reason": "there is no directory nothing"}]
    assert content["variants"][1]["clips"][0]["end_to_end"]["snr_db"] == "lost"
    assert content["variants"][0]["states"]["encoder"]["conv_enc_0_state"] == "exact"  # it is the audio itself
    assert json.loads(report_json.to_text(good))["passed"] is True


@pytest.mark.parametrize(
    ("value", "written"), [(math.inf, "exact"), (-math.inf, "lost"), (math.nan, None), (None, None)]
)
def test_levels(value, written):
    assert level(value) == written
    assert number(value) in ("exact", "-∞", "—")


def test_a_report_reads_back_as_it_was_written(good, bad, tmp_path):
    """The records are the schema: no key more or less, infinities as words."""
    for run in (good, bad):
        (tmp_path / "report.json").write_text(report_json.to_text(run))
        assert read_report(tmp_path) == report_json.to_report(run)


def test_report_names_exactly_the_files_it_measured(good, tiny_variant):
    manifest = json.loads((tiny_variant(8) / "manifest.json").read_text())
    assert report_json.to_report(good).to_dict()["variants"][0]["files"] == manifest["files"]


def test_no_path_of_this_machine_is_in_a_report(good, tiny_variant):
    for module in (report_json, report_md, junit, report_html):
        assert str(tiny_variant(8).parent) not in module.to_text(good)


def test_markdown(good, bad):
    text = report_md.to_text(bad)
    assert text.startswith("# Parity: 1 variant failed, 1 variant not measured\n")
    assert "31.90 dB, wanted at least 110 dB" in text
    assert "parts at transformer_0 in call 1" in text
    assert "| public model card, streaming vs batch | 31.9 | 0.99970 | 0.16 |" in text
    assert report_md.to_text(good).startswith("# Parity: passed, 1 variant\n\n> **synthetic:tiny: made-up weights: ")
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        cells = {len(re.split(r"(?<!\\)\|", row)) for row in rows}
        assert len(cells) <= 1, block


@pytest.mark.parametrize(
    ("fraction", "text"), [(1.0, "100 %"), (0.999999, "99.99 %"), (0.985, "98.50 %"), (0.0, "0.00 %")]
)
def test_only_all_codes_are_100_percent(fraction, text):
    assert tables.percent(fraction) == text


def test_junit(bad):
    root = ET.fromstring(junit.to_text(bad).split("\n", 1)[1])  # noqa: S314 - written a line above
    tests = sum(len(report.checks) for report in bad.reports) + 1
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == (str(tests), "1", "1")
    failure = root.find("testsuite[@name='broken']/testcase/failure")
    assert failure is not None
    assert "wanted at least 110 dB" in (failure.get("message") or "")
    assert "value_1 is read in place of value_0" in (failure.text or "")


class Page(HTMLParser):
    """Checks that tags are closed in order and collects what a page would load."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_is_one_well_formed_file_that_loads_nothing(bad):
    text = report_html.to_text(bad)
    assert text.index("made-up weights: ") < text.index('class="verdict')
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert "script" not in page.tags  # not ours, and not the one in a clip's name
    assert all(source.startswith("data:") for source in page.sources)
    assert not re.search(r"url\(|@import|https?://", text)
    assert page.tags.count("audio") == 4 * 2  # original, PyTorch and two variants, of two clips
    assert text.index("1 variant failed") < text.index("<table")


def test_pictures():
    import base64
    import struct
    import zlib

    data = base64.b64decode(charts.png(np.array([[0, 1], [1, 0]], np.uint8), [(1, 2, 3), (4, 5, 6)]).split(",")[1])
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (2, 2)
    start = data.index(b"IDAT")
    (size,) = struct.unpack(">I", data[start - 4 : start])
    assert zlib.decompress(data[start + 4 : start + 4 + size]) == bytes([0, 0, 1, 0, 1, 0])
    low, high = charts.envelope(np.array([1, -1, 3, 2], np.float32), 2)
    assert low.tolist() == [-1, 2]
    assert high.tolist() == [1, 3]
    assert charts.heat_map(np.zeros((8, 5000), np.uint8)).startswith("data:image/png")
    assert "nan" not in charts.lines([(0, np.array([math.inf, -math.inf, math.nan, 5.0]))], 0, 140, (30,))


def test_all_files_are_written(good, tmp_path):
    write_reports(good, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
