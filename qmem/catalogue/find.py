"""From what a person types to one model's config: catalogue, mirror, disk or hub.

It refuses names whose weights qmem does not model, and says what it took a name for.
"""

from collections.abc import Iterator
from typing import Any, NoReturn

import msgspec

from qmem.catalogue.config_file import (
    REMOTE_CODE_TYPES,
    local_config_path,
    read_config,
    stored_quantization,
)
from qmem.catalogue.models import CatalogueModel, names
from qmem.catalogue.names import (
    base_name,
    is_dynamic_4bit,
    nearest,
    normal,
    stored_format,
    stores_bitsandbytes,
)
from qmem.catalogue.text_models import TEXT_PART, is_loaded_as_text, split_text_part, text_config
from qmem.errors import UnsupportedError, UsageError


class FoundModel(msgspec.Struct, frozen=True, kw_only=True):
    """The model that a name means.

    Attributes:
        id: how it is shown: the catalogue's id, the hub's, or the path as it was typed.
        config: the keys of its ``config.json``.
        source: where the config was read.
        notes: sentences for the reader: what the name was taken for, what is unsure.
        params_counted: parameters of the whole model, where the catalogue has them.
        needs_remote_code: transformers does not have the family; its repository brings the code.
        stored: the format of quantized weights that its own checkpoint holds (``FP8``, ``MXFP4``), else empty.
    """

    id: str
    config: dict[str, Any]
    source: str
    notes: tuple[str, ...] = ()
    params_counted: int | None = None
    needs_remote_code: bool = False
    stored: str = ""


def find_model(name: str) -> FoundModel:
    """The model that ``name`` means.

    A name is a folder or a ``config.json``, a catalogue id, alias or short name in any case, the name of a
    mirror, or (where ``huggingface_hub`` is installed and the hub answers) any hub id.  With ``:text_config`` behind it
    the text model of a multi-modal one is meant.

    Raises:
        UsageError: nothing or several models are called so, or the config is broken.
        UnsupportedError: the weights are quantized in a way that qmem does not model, or need remote code.
        UnavailableError: the hub has it, but not for everyone.
    """
    whole, is_text_part = split_text_part(name)
    found = _find_whole(whole)
    if is_loaded_as_text(found.config):
        return _text_model(found, found.id, "as AutoModelForCausalLM loads it")
    if is_text_part:
        return _text_model(found, f"{found.id}{TEXT_PART}", "though AutoModelForCausalLM loads its towers too")
    return found


def _text_model(found: FoundModel, name: str, how_loaded: str) -> FoundModel:
    note = f"planned is the text model of {found.id} alone, {how_loaded}"
    config = text_config(found.config, found.id)
    return msgspec.structs.replace(found, id=name, config=config, notes=(*found.notes, note), params_counted=None)


def _find_whole(name: str) -> FoundModel:
    if not name.strip():
        raise UsageError("no model is named", hint="for example: qmem estimate Qwen3-14B")
    path = local_config_path(name)
    if path is not None:
        return _from_file(name, path, source=path)
    return _from_catalogue(name) or _from_hub(name) or _refuse_unknown(name)


def _from_catalogue(name: str) -> FoundModel | None:
    label = stored_format(name)
    if label:
        raise _not_modelled(name, label)
    known = names()
    models = known.get(normal(name)) or known.get(base_name(name), ())
    if len(models) > 1:
        raise UsageError(f"{name} can mean {' or '.join(model.id for model in models)}", hint="name one in full")
    return _found(name, models[0]) if models else None


def _found(name: str, model: CatalogueModel) -> FoundModel:
    config, stored = model.config, stored_quantization(model.config).upper()
    if stored:
        config = {key: value for key, value in config.items() if key != "quantization_config"}
    return FoundModel(
        id=model.id,
        config=config,
        source=model.source,
        notes=tuple(_notes(name, model, stored)),
        params_counted=model.params_counted,
        needs_remote_code=config["model_type"] in REMOTE_CODE_TYPES,
        stored=stored,
    )


def _notes(name: str, model: CatalogueModel, stored: str) -> Iterator[str]:
    relation = _relation(name, model)
    if relation:
        yield relation
    if is_dynamic_4bit(name):
        yield f"{name} keeps some linears in 16 bit (dynamic quantization); here every linear is quantized"
    elif stores_bitsandbytes(name):
        yield f"{name} is quantized by bitsandbytes already; here the job decides how"
    if stored:
        yield f"{model.id} stores {stored} weights; planned is a copy with 16-bit weights, which a job can quantize"
    if model.unsure_fields:
        yield f"unsure in the catalogue: {', '.join(model.unsure_fields)}"
    if model.note:
        yield model.note


def _relation(name: str, model: CatalogueModel) -> str:
    """What the typed name was taken for, where it is not simply another spelling of the id."""
    if normal(name) == normal(model.id) or ("/" not in name and not stores_bitsandbytes(name)):
        return ""
    if base_name(name) != base_name(model.id):
        return f"{name} is planned as {model.id}, which has its shapes"
    is_known = name.startswith("unsloth/") or name in model.aliases
    return f"{name} is {'' if is_known else 'taken as '}a mirror of {model.id}"


def _from_hub(name: str) -> FoundModel | None:
    from qmem.catalogue.hub import hub_config_path  # noqa: PLC0415 - most names are in the catalogue

    path = hub_config_path(name)
    return _from_file(name, path, source=f"{name} on the hub") if path else None


def _from_file(name: str, path: str, source: str) -> FoundModel:
    config = read_config(path, shown=path)
    quantized = stored_quantization(config)
    if quantized not in ("", "bitsandbytes"):
        raise _not_modelled(name, quantized.upper(), str(config.get("_name_or_path") or name))
    note = f"{name} is quantized by bitsandbytes already; here the job decides how"
    return FoundModel(id=name, config=config, source=source, notes=(note,) if quantized else ())


def _not_modelled(name: str, label: str, base: str = "") -> UnsupportedError:
    models = names().get(base_name(base or name), ())
    command = f"qmem estimate {models[0].id if models else 'ORGANISATION/BASE'} --quant nf4"
    return UnsupportedError(
        f"{name} stores {label} weights, which qmem does not model", hint=f"plan its base in nf4: {command}"
    )


def _refuse_unknown(name: str) -> NoReturn:
    known = names()
    keys = nearest(normal(name), known, count=40)
    ids = list(dict.fromkeys(known[key][0].id for key in keys))[:3]
    raise UsageError(
        f"no model is called {name!r}",
        hint=f"nearest: {', '.join(ids)}; or name a folder with a config.json (qmem models lists the catalogue)",
    )
