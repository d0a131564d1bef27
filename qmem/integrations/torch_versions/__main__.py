"""``python -m qmem.integrations.torch_versions``: try every version, then write the report."""

from qmem.integrations.command import REPORTS, commit, run, tell, write_data, write_text
from qmem.integrations.torch_versions.report import report
from qmem.integrations.torch_versions.trying import Record, try_all


def main() -> None:
    """Try the phantom under each version of torch and write reports/torch-versions.md."""
    record = Record(commit=commit(), tried=tuple(try_all(tell)))
    write_data(REPORTS / "torch-versions.json", record)
    write_text(REPORTS / "torch-versions.md", report(record))


if __name__ == "__main__":
    run(main)
