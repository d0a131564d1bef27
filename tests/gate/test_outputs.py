"""Every form of the result, against its schema or a real parser, and its numbers added up again."""

import json
import re
from xml.etree import ElementTree as ET

import jsonschema
import msgspec
import pytest

from qmem import estimate
from qmem.gate.baseline import baseline_of
from qmem.gate.judging import Verdict, judge
from qmem.report.gate_formats import FORMATS, MARKER, SCHEMA_VERSION

JUNIT = {"testsuites": {"testsuite"}, "testsuite": {"testcase"}, "testcase": {"failure", "error", "system-out"}}
"""Which elements JUnit's schema allows within which (jenkins-junit.xsd, the ones that are written here)."""

REQUIRED = {"testsuite": {"name", "tests", "failures", "errors"}, "testcase": {"name", "classname"},
            "failure": {"message", "type"}, "error": {"message", "type"}}  # fmt: skip

COMMAND = re.compile(r"::(?P<level>error|warning) (?P<properties>[^:]*)::(?P<message>.*)")
"""GitHub's workflow commands: ``::error file={name},title={title}::{message}``."""

CHARTS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name", "unit", "value"],
        "properties": {"name": {"type": "string"}, "unit": {"type": "string"}, "value": {"type": "number"}},
    },
}
"""What github-action-benchmark reads as ``customSmallerIsBetter``."""


@pytest.fixture
def verdicts(scenario) -> list[Verdict]:
    one = scenario()
    baseline = baseline_of(one, estimate(one.job), {"reason": "test"})
    grown = judge(one, estimate(one.job.replace(rank=64)), baseline)
    missing = judge(one, estimate(one.job), None)
    same = judge(one, estimate(one.job), baseline)
    stale = judge(one, estimate(one.job.replace(rank=4)), baseline)
    named = zip(("grown", "missing", "same", "stale|<&>"), (grown, missing, same, stale), strict=True)
    return [msgspec.structs.replace(verdict, scenario=name) for name, verdict in named]


FAILING = ["grown", "missing"]


def test_junit_is_well_formed_and_counts_its_cases(verdicts):
    root = ET.fromstring(FORMATS["junit"](verdicts, FAILING))  # noqa: S314 - our own text
    for element in root.iter():
        assert {child.tag for child in element} <= JUNIT.get(element.tag, set())
        assert REQUIRED.get(element.tag, set()) <= set(element.keys())
    suite = root.find("testsuite")
    assert suite is not None
    assert int(suite.get("tests")) == len(suite.findall("testcase")) == len(verdicts)
    assert int(suite.get("failures")) == len(suite.findall("testcase/failure")) == 1
    assert int(suite.get("errors")) == len(suite.findall("testcase/error")) == 1
    assert [case.get("name") for case in suite] == [verdict.scenario for verdict in verdicts]


def test_github_gets_one_command_a_finding(verdicts, monkeypatch, tmp_path):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    *commands, last = FORMATS["github"](verdicts, FAILING).splitlines()
    parsed = [COMMAND.fullmatch(command) for command in commands]
    assert [match["level"] for match in parsed] == ["error", "error", "warning"]
    for match in parsed:
        properties = dict(part.split("=", 1) for part in match["properties"].split(","))
        assert properties.keys() == {"file", "title"}
        assert properties["file"].startswith("profiles/baselines/")
    assert last == "4 scenarios: 1 grown, 1 no baseline, 1 unchanged, 1 stale."
    assert summary.read_text() == "before\n" + FORMATS["markdown"](verdicts, FAILING)


def test_a_percent_sign_and_a_new_line_do_not_end_a_command(verdicts):
    strange = msgspec.structs.replace(verdicts[1], why="50 %\nof it, a: b")
    command = FORMATS["github"]([strange], ["missing"]).splitlines()[0]
    assert command.endswith("::50 %25%0Aof it, a: b")


def test_markdown_has_the_marker_first_and_tables_that_hold(verdicts):
    text = FORMATS["markdown"](verdicts, FAILING)
    assert text.splitlines()[0] == MARKER
    assert "2 of 4 scenarios need attention" in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {6}
    grown = next(row for row in rows if row.startswith("| grown"))
    was, now, change = (float(cell.replace(",", "")) for cell in grown.split("|")[3:6])
    assert (now - was) * 1024 == pytest.approx(change, abs=1.1)
    assert text.count("<details>") == text.count("</details>") == 1


def test_charts_are_what_the_action_reads(verdicts):
    charts = json.loads(FORMATS["benchmark"](verdicts, FAILING))
    jsonschema.validate(charts, CHARTS)
    assert [chart["value"] for chart in charts] == [verdict.peak for verdict in verdicts]


def test_json_has_every_finding_and_its_numbers_add_up(verdicts):
    content = json.loads(FORMATS["json"](verdicts, FAILING))
    assert content["schema_version"] == SCHEMA_VERSION
    assert content["failing"] == FAILING
    assert msgspec.convert(content["verdicts"], list[Verdict]) == verdicts
    findings = content["verdicts"][0]["findings"]
    assert findings
    for finding in findings:
        for cause in finding["causes"]:
            assert abs(cause["now"] - cause["baseline"]) > 0
            assert cause["kind"] in finding["kinds"]
