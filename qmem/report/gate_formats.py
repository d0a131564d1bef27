"""The gate's result for machines and pages: JSON, Markdown for a pull request, GitHub's commands, JUnit, a chart.

Every form takes the verdicts and the names of the scenarios that fail, and gives one text.
"""

from collections.abc import Callable, Iterator, Sequence
from xml.etree import ElementTree as ET

import msgspec

from qmem.gate import Verdict
from qmem.gate.baseline import FOLDER
from qmem.report.gate_table import amounts, described, sentences, summary

SCHEMA_VERSION = 1

MARKER = "<!-- qmem:report -->"
"""By this line a comment is found again and updated in place."""

Form = Callable[[Sequence[Verdict], Sequence[str]], str]


def to_json(verdicts: Sequence[Verdict], failing: Sequence[str]) -> str:
    """Every verdict with its findings, in integer bytes."""
    content = {"schema_version": SCHEMA_VERSION, "failing": list(failing), "verdicts": list(verdicts)}
    return msgspec.json.encode(content).decode() + "\n"


def to_markdown(verdicts: Sequence[Verdict], failing: Sequence[str]) -> str:
    """A comment of a pull request: what fails first, what is unchanged folded away."""
    head = f"{len(failing)} of {len(verdicts)} scenarios need attention" if failing else "peak memory as before"
    loud = [verdict for verdict in verdicts if verdict.scenario in failing]
    quiet = [verdict for verdict in verdicts if verdict.scenario not in failing]
    parts = [MARKER, f"### qmem: {head}", *([_table(loud), *map(_details, loud)] if loud else [])]
    if quiet:
        parts.append(f"<details><summary>{len(quiet)} others</summary>\n\n{_table(quiet)}\n\n</details>")
    return "\n\n".join(parts) + "\n"


def _table(verdicts: Sequence[Verdict]) -> str:
    lines = ["| scenario | outcome | baseline, GiB | now, GiB | change, MiB |", "|---|---|--:|--:|--:|"]
    for verdict in verdicts:
        simulated = " (simulated)" if verdict.simulated else ""
        cells = (plain(verdict.scenario), f"{verdict.outcome}{simulated}", *amounts(verdict))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _details(verdict: Verdict) -> str:
    first, *others = sentences(verdict)
    found = [line.strip() for finding in verdict.findings[:1] for line in described(finding)]
    lines = "\n".join(f"* {plain(line)}" for line in (*others, *found))
    return "\n\n".join(filter(None, (f"**{plain(verdict.scenario)}**: {plain(first)}", lines)))


_SIGNS = str.maketrans({sign: f"\\{sign}" for sign in "\\`_{}[]<>|#"})


def plain(text: str) -> str:
    """The text on one line, with no sign that Markdown would take for its own."""
    return " ".join(text.split()).translate(_SIGNS)


def to_github(verdicts: Sequence[Verdict], failing: Sequence[str]) -> str:
    """GitHub's workflow commands, one a scenario that is not quiet, and a line that sums up.

    Where ``GITHUB_STEP_SUMMARY`` names a file, the Markdown is added to it.  Source of the grammar: GitHub's
    "Workflow commands", ``::error file={name},title={title}::{message}``.
    """
    _add_step_summary(to_markdown(verdicts, failing))
    lines = [_command(verdict, failing) for verdict in verdicts if verdict.scenario in failing or _warns(verdict)]
    return "\n".join((*lines, summary(verdicts))) + "\n"


def _warns(verdict: Verdict) -> bool:
    return verdict.outcome == "stale"


def _command(verdict: Verdict, failing: Sequence[str]) -> str:
    level = "error" if verdict.scenario in failing else "warning"
    file = _property(f"{FOLDER.as_posix()}/{verdict.scenario}.json")
    title = _property(f"qmem: {verdict.scenario} {verdict.outcome}")
    details = [line for finding in verdict.findings[:1] for line in described(finding)]
    return f"::{level} file={file},title={title}::{_message(chr(10).join((*sentences(verdict), *details)))}"


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")


def _add_step_summary(markdown: str) -> None:
    import os  # noqa: PLC0415

    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if path:
        with open(path, "a", encoding="utf-8") as file:  # noqa: PTH123
            file.write(markdown)


def to_junit(verdicts: Sequence[Verdict], failing: Sequence[str]) -> str:
    """JUnit XML: one case a scenario."""
    return junit_document(junit_suite(verdicts, failing))


def junit_suite(verdicts: Sequence[Verdict], failing: Sequence[str]) -> ET.Element:
    """A suite with one case a scenario; what cannot be compared here is an error, what grew a failure."""
    suite = ET.Element("testsuite", name="qmem check")
    counts = {"failure": 0, "error": 0}
    for verdict in verdicts:
        case = ET.SubElement(suite, "testcase", classname="qmem.check", name=verdict.scenario, time="0")
        if verdict.scenario in failing:
            tag = (
                "error" if verdict.outcome in ("not measured", "not comparable", "no baseline", "wrong") else "failure"
            )
            counts[tag] += 1
            node = ET.SubElement(case, tag, message=xml_text("; ".join(sentences(verdict))), type=verdict.outcome)
            node.text = xml_text("\n".join(_lines(verdict)))
        elif verdict.findings or verdict.changed:
            ET.SubElement(case, "system-out").text = xml_text("\n".join(_lines(verdict)))
    suite.set("tests", str(len(verdicts)))
    suite.set("failures", str(counts["failure"]))
    suite.set("errors", str(counts["error"]))
    suite.set("skipped", "0")
    suite.set("time", "0")
    return suite


def junit_document(*parts: ET.Element) -> str:
    """The text of suites."""
    suites = ET.Element("testsuites")
    suites.extend(parts)
    ET.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"


def _lines(verdict: Verdict) -> Iterator[str]:
    yield from sentences(verdict)
    for finding in verdict.findings:
        yield from described(finding)


def xml_text(text: str) -> str:
    """The text without what XML 1.0 cannot hold."""
    return "".join(sign for sign in text if sign in "\t\n" or sign >= " ")


def to_benchmark(verdicts: Sequence[Verdict], _failing: Sequence[str]) -> str:
    """``customSmallerIsBetter`` of github-action-benchmark: one chart a scenario."""
    measured = (verdict for verdict in verdicts if verdict.peak is not None)
    charts = [
        {
            "name": f"{verdict.scenario}: peak allocated{' (simulated)' if verdict.simulated else ''}",
            "unit": "bytes",
            "value": verdict.peak,
            "extra": verdict.why,
        }
        for verdict in measured
    ]
    return msgspec.json.encode(charts).decode() + "\n"


FORMATS: dict[str, Form] = {
    "json": to_json,
    "markdown": to_markdown,
    "github": to_github,
    "junit": to_junit,
    "benchmark": to_benchmark,
}
"""By the word after ``--format``."""
