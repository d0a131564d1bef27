"""The job file: TOML with the field names of ``Job``, at the top level or in a table ``[job]``.

It owns reading and naming what is wrong with a file.  It does not know which fields contradict each other: flags
may still override a field, so the merged job is what ``make_job`` checks.
"""

import sys
from typing import Any

import msgspec

from qmem.errors import UsageError
from qmem.job.job import Job, make_job


def read_job_file(path: str) -> dict[str, Any]:
    """The fields that the file sets, none of them defaulted.

    Raises:
        UsageError: the file cannot be read, is no TOML, or names a field that a job does not have or a value of the
            wrong type. The message begins with the path.
    """
    fields = _job_table(path, read_toml(path))
    _check_names(path, fields)
    _check_types(path, fields)
    return fields


def read_toml(path: str) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        UsageError: it cannot be read, or is no TOML. The message begins with the path.
    """
    toml = _toml_library()
    text = _text(path)
    try:
        tables: dict[str, Any] = toml.loads(text)
    except toml.TOMLDecodeError as error:
        last = f"at line {text.count(chr(10)) + 1}, the end of the file"
        reason = str(error).replace("at end of document", last)
        raise UsageError(f"{path}: not TOML: {reason}", hint="write for example rank = 16") from error
    except RecursionError as error:
        raise UsageError(f"{path}: not a job: its values are nested too deeply") from error
    return tables


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - pathlib costs start-up time
            return file.read()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}", hint="--job names a readable TOML file") from error
    except ValueError as error:
        reason = f"not UTF-8 text at byte {error.start}" if isinstance(error, UnicodeDecodeError) else str(error)
        raise UsageError(f"{path!r}: {reason}", hint="--job names a TOML file") from error


def _toml_library() -> Any:
    """``tomllib``, or the package it came from where Python has none (3.10)."""
    if sys.version_info >= (3, 11):
        import tomllib  # noqa: PLC0415 - only a job file needs it
    else:
        import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415
    return tomllib


def _job_table(path: str, tables: dict[str, Any]) -> dict[str, Any]:
    if "job" not in tables:
        return tables
    beside = [name for name in tables if name != "job"]
    if beside:
        raise UsageError(f"{path}: {beside[0]!r} stands beside the table [job]", hint="put every field under [job]")
    if not isinstance(tables["job"], dict):
        raise UsageError(f"{path}: job is {tables['job']!r}, but must be a table", hint="begin it with [job]")
    return dict(tables["job"])


def _check_names(path: str, fields: dict[str, Any]) -> None:
    for name in fields:
        if name not in Job.__struct_fields__:
            raise UsageError(f"{path}: a job has no field {name!r}", hint=_nearest_field(name))


def _nearest_field(name: str) -> str:
    from difflib import get_close_matches  # noqa: PLC0415 - only for the error

    near = get_close_matches(name.lower().replace("-", "_"), Job.__struct_fields__, n=1)
    return f"did you mean {near[0]}?" if near else f"its fields are {', '.join(Job.__struct_fields__)}"


def _check_types(path: str, fields: dict[str, Any]) -> None:
    """Raises for values of the wrong type only; msgspec's error is the cause of exactly those."""
    try:
        make_job({"model": "", **fields})
    except UsageError as error:
        if isinstance(error.__cause__, msgspec.ValidationError):
            raise UsageError(f"{path}: {error.message}", hint=error.hint) from error
