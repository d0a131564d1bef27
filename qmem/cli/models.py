"""``qmem models [FILTER]``: the catalogue's models, and how far each is modelled."""

from typing import Any

import click

from qmem.catalogue.models import CatalogueModel, match_models
from qmem.cli.columns import columns
from qmem.cli.command import VerbCommand, json_option
from qmem.cli.streams import write_note, write_result
from qmem.ledger import SCHEMA_VERSION

BILLION = 10**9
LEGEND = (
    "modelled: step = qmem estimate walks its training step; text = that of its text model, NAME:text_config; "
    "tensors = its tensors are known, so --rule-of-thumb works; - = not yet"
)


def show_models(words: tuple[str, ...], as_json: bool) -> None:
    """Print the models whose name or family contains every word."""
    found = match_models(" ".join(words))
    if as_json:
        import msgspec

        listed = {"schema_version": SCHEMA_VERSION, "models": [_facts(model) for model in found]}
        write_result(msgspec.json.encode(listed).decode() + "\n")
    elif found:
        rows = [(_cells(model), _remark(model)) for model in found]
        write_result(columns(("model", "family", "params", "modelled"), rows, ("params",), LEGEND))
    else:
        write_note(f"no model of the catalogue matches {' '.join(words)!r}; qmem models lists all of them")


def _cells(model: CatalogueModel) -> tuple[str, str, str, str]:
    return (model.id, model.model_type, f"{model.params_counted / BILLION:.2f} B", modelled(model) or "-")


def _remark(model: CatalogueModel) -> str:
    return f"unsure: {', '.join(model.unsure_fields)}" if model.unsure_fields else ""


def _facts(model: CatalogueModel) -> dict[str, Any]:
    return {
        "id": model.id,
        "aliases": model.aliases,
        "family": model.model_type,
        "parameters": model.params_counted,
        "parameters_published": model.params_published,
        "modelled": modelled(model),
        "source": model.source,
        "unsure_fields": model.unsure_fields,
        "note": model.note,
    }


def modelled(model: CatalogueModel) -> str | None:
    """``step``, ``text``, ``tensors``, or ``None`` where the family is not built."""
    from qmem.architecture import FAMILIES as DESCRIBED
    from qmem.catalogue.text_models import LOADED_AS_TEXT
    from qmem.estimator.families import FAMILIES as WALKED

    if LOADED_AS_TEXT.get(model.model_type, model.model_type) in WALKED:
        return "step"
    if model.config.get("text_config", {}).get("model_type") in WALKED:
        return "text"
    return "tensors" if model.model_type in DESCRIBED else None


command = VerbCommand(
    "models",
    callback=show_models,
    params=[click.Argument(["words"], nargs=-1, metavar="[FILTER]..."), json_option()],
    help="List the models that qmem knows by name; a filter is words of a name or family.",
    epilog="Example: qmem models qwen3 14b",
)
