"""JUnit XML: one suite a variant, one case a check, so that a CI system lists each; not measured is an error."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from mimi_export.parity.results import ParityRun


def to_text(run: ParityRun) -> str:
    """The XML as text."""
    root = ET.Element("testsuites", name="mimi-export parity")
    for report in run.reports:
        failures = sum(not check.passed for check in report.checks)
        suite = ET.SubElement(
            root, "testsuite", name=report.name, tests=str(len(report.checks)), failures=str(failures), errors="0"
        )
        for check in report.checks:
            case = ET.SubElement(suite, "testcase", classname=f"parity.{report.name}", name=check.metric)
            if not check.passed:
                failure = ET.SubElement(case, "failure", message=check.line, type="budget")
                failure.text = "\n".join([check.reason, *(item.line for item in report.explanations)])
            else:
                ET.SubElement(case, "system-out").text = check.line
    for item in run.not_measured:
        suite = ET.SubElement(root, "testsuite", name=item.directory, tests="1", failures="0", errors="1")
        case = ET.SubElement(suite, "testcase", classname="parity", name=item.directory)
        ET.SubElement(case, "error", message=item.reason, type="not-measured")
    for count in ("tests", "failures", "errors"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"
