"""Every form of the result is a golden, read by its schema or a parser, and its numbers are added up again.

The verdicts are those of ``golden/check.json``, one of every outcome; ``renew_goldens.py`` writes the other files.
"""

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

import jsonschema
import msgspec
import pytest
import xmlschema
from markdown_it import MarkdownIt
from renew_goldens import FILES, GOLDEN, WIDTHS, stored, table

from qmem.gate.judging import Verdict
from qmem.report.gate_formats import FORMATS, MARKER, SCHEMA_VERSION
from qmem.report.gate_table import sentences

JUNIT = xmlschema.XMLSchema(Path(__file__).with_name("junit.xsd"))

FINDING = re.compile(r"(?P<phase>[\w. ]+): (?P<what>peak allocated|paged bytes) .* \((?P<change>[+-][\d,]+) B, limit ")
BY_KIND = re.compile(r"by kind(?P<elsewhere> \([^)]*\))?: (?P<kinds>.*)")
AMOUNT = re.compile(r"([+-][\d,]+) B(?:, |$)")
HOLDING = re.compile(r".* (?P<was>[\d,]+) -> (?P<now>[\d,]+) B \((?P<change>[+-][\d,]+) B\)")

CHARTS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name", "unit", "value"],
        "properties": {"name": {"type": "string"}, "unit": {"type": "string"}, "value": {"type": "number"}},
    },
}
"""What github-action-benchmark reads as ``customSmallerIsBetter``."""

INTEGER, TEXT = {"type": "integer"}, {"type": "string"}
CAUSE = {
    "type": "object",
    "required": ["kind", "owner", "baseline", "now"],
    "properties": {"kind": TEXT, "owner": TEXT, "baseline": INTEGER, "now": INTEGER},
    "additionalProperties": False,
}
FOUND = {
    "phase": TEXT, "what": TEXT, "baseline": INTEGER, "now": INTEGER, "limit": INTEGER, "held_in": TEXT,
    "kinds": {"type": "object", "additionalProperties": INTEGER}, "causes": {"type": "array", "items": CAUSE},
}  # fmt: skip
JUDGED = {
    "scenario": TEXT, "outcome": TEXT, "why": TEXT, "changed": {"type": "array", "items": TEXT},
    "peak": {"type": ["integer", "null"]}, "was": {"type": ["integer", "null"]}, "simulated": {"type": "boolean"},
    "findings": {
        "type": "array",
        "items": {"type": "object", "required": list(FOUND), "properties": FOUND, "additionalProperties": False},
    },
}  # fmt: skip
RESULT = {
    "type": "object",
    "required": ["schema_version", "failing", "verdicts"],
    "properties": {
        "schema_version": {"const": SCHEMA_VERSION},
        "failing": {"type": "array", "items": TEXT},
        "verdicts": {
            "type": "array",
            "items": {"type": "object", "required": list(JUDGED), "properties": JUDGED, "additionalProperties": False},
        },
    },
    "additionalProperties": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def verdicts() -> list[Verdict]:
    return stored()[0]


@pytest.fixture(scope="module")
def failing() -> list[str]:
    return stored()[1]


def golden(name: str) -> str:
    return (GOLDEN / name).read_text()


@pytest.mark.parametrize("form", FILES)
def test_every_form_is_its_golden(verdicts, failing, form):
    assert FORMATS[form](verdicts, failing) == golden(FILES[form])


@pytest.mark.parametrize("width", WIDTHS)
def test_the_table_is_its_golden_and_no_line_is_wider_than_the_terminal(verdicts, width):
    text = table(verdicts, width)
    assert text == golden(f"table-{width}.txt")
    assert max(map(len, text.splitlines())) <= width


def number(text: str) -> int:
    return int(text.replace(",", ""))


def added_up(lines: Iterator[str]) -> int:
    """How many findings a text tells whose parts make their change; a part that does not is an error."""
    found = None
    n_findings = 0
    for line in lines:
        if match := FINDING.search(line):
            found = number(match["change"])
            n_findings += 1
        elif match := BY_KIND.search(line):
            assert found is not None
            if not match["elsewhere"]:
                assert sum(map(number, AMOUNT.findall(match["kinds"]))) == found
        elif match := HOLDING.fullmatch(line):
            assert number(match["now"]) - number(match["was"]) == number(match["change"])
    return n_findings


def unfolded(text: str) -> Iterator[str]:
    """The lines of a table's details, those that were folded in one piece."""
    return iter(re.sub(r"\n +(?=[+-]?[\d(]|limit|rounding|intermediate -|--only)", " ", text).splitlines())


@pytest.mark.parametrize("width", WIDTHS)
def test_what_the_table_says_adds_up_at_every_width(width):
    text = golden(f"table-{width}.txt")
    assert added_up(unfolded(text)) == 5
    for row in re.findall(r"^\S+ .* ([\d.]+) +([\d.]+) +([+-][\d,.]+)$", text, re.MULTILINE):
        was, now, change = (float(cell.replace(",", "")) for cell in row)
        assert (now - was) * 1024 == pytest.approx(change, abs=1.1)


def test_folded_lines_stand_below_the_first_and_no_amount_is_parted_from_its_unit():
    lines = golden("table-80.txt").splitlines()
    assert not [line for line in lines if re.match(r"\s*(B|MiB|GiB)\b", line)]
    folded = lines.index("  peak allocated in step 2 backward grew by 4.23 GiB, 3.97 GiB -> 8.20 GiB")
    assert lines[folded + 1] == "    (intermediate: mlp.gate_proj)"
    assert " ".join(golden("table-80.txt").split()[40:]) in " ".join(golden("table-200.txt").split())


def test_what_changed_is_said_before_what_came_of_it(verdicts):
    older = next(verdict for verdict in verdicts if verdict.scenario == "older-library")
    assert sentences(older)[:2] == ("grown", "changed: bitsandbytes 0.50.2 -> 0.49.2")
    assert sentences(older)[2].startswith("peak allocated in load grew by 25.61 MiB")


def test_junit_is_valid_and_counts_its_cases(verdicts, failing):
    text = golden("check.xml")
    JUNIT.validate(text)
    suite = ET.fromstring(text).find("testsuite")  # noqa: S314 - our own text
    assert suite is not None
    assert [case.get("name") for case in suite] == [verdict.scenario for verdict in verdicts]
    assert int(suite.get("tests")) == len(verdicts)
    assert int(suite.get("failures")) == len(suite.findall("testcase/failure")) == 4
    assert int(suite.get("errors")) == len(suite.findall("testcase/error")) == 4
    assert [
        case.get("name") for case in suite if case.find("failure") is not None or case.find("error") is not None
    ] == failing
    assert added_up(line for part in suite.itertext() for line in part.splitlines()) == 6


def test_a_schema_that_is_not_kept_is_noticed():
    with pytest.raises(xmlschema.XMLSchemaValidationError):
        JUNIT.validate(golden("check.xml").replace('tests="11"', 'tests="eleven"'))


class Command(NamedTuple):
    """A workflow command of GitHub."""

    name: str
    properties: dict[str, str]
    message: str


def parsed(line: str) -> Command:
    """A line by the documented grammar, ``::name key=value,key=value::message``, with its escapes undone.

    As GitHub's runner reads it: the name ends at the first blank, the properties at the next ``::``; in a property
    ``%3A`` and ``%2C`` stand for its signs, in both ``%25``, ``%0D`` and ``%0A``.
    """
    assert line.startswith("::")
    head, _, message = line[2:].partition("::")
    name, _, properties = head.partition(" ")
    pairs = (pair.partition("=")[::2] for pair in properties.split(","))
    return Command(name, {key: unescaped(value, ":,") for key, value in pairs}, unescaped(message, ""))


def unescaped(text: str, signs: str) -> str:
    for sign in f"{signs}\r\n%":
        text = text.replace(f"%{ord(sign):02X}", sign)
    return text


def test_github_gets_one_command_a_finding_and_reads_back_what_is_meant(verdicts, failing):
    *lines, last = golden("check.github").splitlines()
    commands = [parsed(line) for line in lines]
    loud = [verdict for verdict in verdicts if verdict.scenario in failing or verdict.outcome == "stale"]
    assert [command.name for command in commands] == [
        "error" if verdict.scenario in failing else "warning" for verdict in loud
    ]
    for command, verdict in zip(commands, loud, strict=True):
        assert command.properties == {
            "file": f"profiles/baselines/{verdict.scenario}.json",
            "title": f"qmem: {verdict.scenario} {verdict.outcome}",
        }
        assert command.message.startswith("\n".join(sentences(verdict)))
    assert added_up(line for command in commands for line in command.message.splitlines()) == 3
    assert last.startswith("11 scenarios: 2 grown, ")


def test_github_gets_the_markdown_as_the_summary_of_the_step(verdicts, failing, monkeypatch, tmp_path):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    FORMATS["github"](verdicts, failing)
    assert summary.read_text() == "before\n" + golden("check.md")


def test_markdown_has_the_marker_first_and_tables_that_hold(verdicts):
    text = golden("check.md")
    assert text.splitlines()[0] == MARKER
    assert "8 of 11 scenarios need attention" in text
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(text)
    assert sum(token.type == "table_open" for token in tokens) == 2
    cells = [token.content for before, token in pairwise(tokens) if before.type == "td_open"]
    rows = [cells[start : start + 5] for start in range(0, len(cells), 5)]
    assert sorted(row[0].replace("\\", "") for row in rows) == sorted(verdict.scenario for verdict in verdicts)
    for _, _, was, now, change in rows:
        if change:
            assert (float(now) - float(was)) * 1024 == pytest.approx(float(change.replace(",", "")), abs=1.1)
    spoken = ["".join(child.content for child in token.children or ()) for token in tokens if token.type == "inline"]
    assert added_up(iter(spoken)) == 2
    assert text.count("<details>") == text.count("</details>") == 1


def test_charts_are_what_the_action_reads(verdicts):
    charts = json.loads(golden("check.benchmark.json"))
    jsonschema.validate(charts, CHARTS)
    assert [chart["value"] for chart in charts] == [verdict.peak for verdict in verdicts if verdict.peak is not None]
    assert [chart["extra"] for chart in charts] == [verdict.why for verdict in verdicts if verdict.peak is not None]


def test_json_keeps_its_schema_and_its_numbers_add_up(verdicts, failing):
    content = json.loads(golden("check.json"))
    jsonschema.validate(content, RESULT)
    assert content["failing"] == failing
    assert msgspec.convert(content["verdicts"], list[Verdict]) == verdicts
    for verdict in content["verdicts"]:
        for finding in verdict["findings"]:
            change = finding["now"] - finding["baseline"]
            assert finding["held_in"] != finding["phase"] or sum(finding["kinds"].values()) == change
            assert {cause["kind"] for cause in finding["causes"]} <= finding["kinds"].keys()
