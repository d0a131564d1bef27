"""``python -m qmem.integrations.published``: measure what is not measured yet, then write the report."""

import click

from qmem.integrations.command import REPORTS, run, tell, write_data, write_text
from qmem.integrations.published.replaying import FOLDER, replay
from qmem.integrations.published.report import report, worse
from qmem.integrations.published.rows import FIGURES, read_replay, read_rows


@click.command()
@click.option("--again", is_flag=True, help="Measure all rows anew, also those that are there.")
def main(*, again: bool) -> None:
    """Replay published measurements on the phantom and write reports/phantom-vs-published.md."""
    for stored in FOLDER.glob("*.json") if again else ():
        stored.unlink()
    rows = read_rows()
    measured = replay(rows, tell)
    for grown in worse(rows, read_replay(FIGURES), measured) if FIGURES.is_file() else ():
        tell(f"further off than before: {grown}")
    write_data(FIGURES, measured)
    write_text(REPORTS / "phantom-vs-published.md", report(rows, measured))


if __name__ == "__main__":
    run(main)
