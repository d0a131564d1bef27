"""The models that qmem knows by name: facts as data (``models.json``), each with its source.

It knows nothing of what a config means; ``qmem.architecture`` turns one into tensors.
"""

from functools import cache
from typing import Any

import msgspec

from qmem.catalogue.names import normal, short
from qmem.catalogue.packaged import read_packaged


class CatalogueModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model of the catalogue.

    Attributes:
        id: its name on the hub.
        aliases: other names of the same shapes: short names, base and instruction variants, mirrors.
        params_counted: parameters of the model that transformers builds from the config, tied ones once.
        params_published: the count that its hub page or card states, where one was found.
        source: repository, file and commit that the config was read from.
        unsure_fields: keys of the config that the source does not settle.
        note: what a reader of the numbers must know, else empty.
        raw_config: the config as JSON text.
    """

    id: str
    aliases: tuple[str, ...]
    params_counted: int
    source: str
    raw_config: msgspec.Raw = msgspec.field(name="config")
    params_published: int | None = None
    unsure_fields: tuple[str, ...] = ()
    note: str = ""

    @property
    def config(self) -> dict[str, Any]:
        """The keys of its ``config.json``, as the source spells them; decoded anew, so the caller owns it."""
        config: dict[str, Any] = msgspec.json.decode(self.raw_config)
        return config

    @property
    def model_type(self) -> str:
        """The family, as transformers names it."""
        return str(self.config["model_type"])


class _File(msgspec.Struct, frozen=True):
    about: tuple[str, ...]
    models: tuple[CatalogueModel, ...]


@cache
def all_models() -> tuple[CatalogueModel, ...]:
    """Every model of the catalogue, family by family."""
    text = read_packaged("models.json")
    return msgspec.json.decode(text, type=_File).models


@cache
def names() -> dict[str, tuple[CatalogueModel, ...]]:
    """Comparable name (full and short, of ids and aliases) to the models it can mean."""
    index: dict[str, tuple[CatalogueModel, ...]] = {}
    for model in all_models():
        spellings = (spelling for name in (model.id, *model.aliases) for spelling in (name, short(name)))
        for key in dict.fromkeys(normal(spelling) for spelling in spellings):
            index[key] = (*index.get(key, ()), model)
    return index


def match_models(text: str = "") -> tuple[CatalogueModel, ...]:
    """The models whose id, alias or family contains every word of ``text``, in catalogue order."""
    words = normal(text).replace("-", " ").split()
    return tuple(model for model in all_models() if _contains(model, words))


def _contains(model: CatalogueModel, words: list[str]) -> bool:
    if not words:
        return True
    haystack = normal(" ".join((model.id, *model.aliases, model.model_type)))
    return all(word in haystack for word in words)
