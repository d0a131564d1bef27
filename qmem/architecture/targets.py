"""Which modules of a model peft adapts, by peft's own rules.

It owns the matching of names: ``all-linear``, lists, regular expressions, ``modules_to_save``, and how peft maps the
old names of experts to transformers 5.  Shapes and counts are ``adapters``' business.
Source: peft 0.21.2, ``tuners/tuners_utils.py`` and ``utils/transformers_weight_conversion.py``.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from qmem.architecture.architecture import EMBEDDINGS, Architecture
from qmem.errors import UsageError
from qmem.job import Job

ALL_LINEAR = "all-linear"

_QWEN = {
    "gate": "gate.weight",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
    "down_proj": "down_proj",
}

FUSED_NAMES: dict[str, dict[str, str]] = {
    "mixtral": {"gate": "gate.weight", "w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj"},
    "qwen3_moe": _QWEN,
    "qwen3_next": _QWEN,
    "deepseek_v2": _QWEN,
    "deepseek_v3": _QWEN,
}
"""``_MOE_TARGET_MODULE_MAPPING`` of peft by family: the name before transformers 5, and the parameter it is now.

peft looks families up in ``_MODEL_TO_CONVERSION_PATTERN``, where qwen2_moe itself has no entry: its experts stay out.
"""
FUSED_PAIR = "gate_up_proj"
"""The parameter that holds two former linears: peft wants both targeted and gives it twice the rank."""


class Targets(NamedTuple):
    """What a job's targets name.

    Attributes:
        modules: linears and embeddings to adapt.
        parameters: parameters to adapt directly (fused experts and their routers).
        saved: modules trained as full copies (``modules_to_save``), outermost first in each.
    """

    modules: frozenset[str]
    parameters: frozenset[str]
    saved: tuple[str, ...]


def find_targets(architecture: Architecture, job: Job) -> Targets:
    """The modules that a job's ``targets`` and ``modules_to_save`` name.

    Raises:
        UsageError: a target or module to save matches nothing, or a module that peft cannot adapt; an invalid regular
            expression; half of a fused pair; a module both adapted and saved.
    """
    saved = _saved_modules(architecture, job.modules_to_save)
    excluded = _exclusion(job.modules_to_save)
    candidates = [name for name in architecture.modules if not excluded(name)]
    names = FUSED_NAMES.get(architecture.family) if architecture.fused_experts else None
    if names:
        modules, parameters = _find_with_fused_experts(architecture, job.targets, candidates, names)
    else:
        modules, parameters = _find(architecture, job.targets, candidates), frozenset[str]()
    _refuse_not_adaptable(modules - _adaptable(architecture), job)
    _refuse_adapted_and_saved(modules | parameters, saved)
    return Targets(modules, parameters, saved)


def _find(architecture: Architecture, targets: str | Sequence[str], candidates: Iterable[str]) -> frozenset[str]:
    """``check_target_module_exists`` for models whose module names peft takes as they are."""
    if isinstance(targets, str):
        if targets.lower() == ALL_LINEAR:
            return _all_linear(architecture, candidates)
        found = frozenset(filter(_pattern(targets).fullmatch, candidates))
        if not found:
            raise _matches_nothing(architecture, [targets], " as a regular expression for whole module names")
        return found
    return _find_names(architecture, targets, candidates)


def _find_names(architecture: Architecture, targets: Sequence[str], candidates: Iterable[str]) -> frozenset[str]:
    """The modules that a list names; each of its names must match."""
    names = tuple(candidates)
    missing = [target for target in targets if not _ending_with((target,), names)]
    if missing:
        raise _matches_nothing(architecture, missing)
    return _ending_with(targets, names)


def _ending_with(targets: Iterable[str], names: Iterable[str]) -> frozenset[str]:
    """A name matches where it is a target or ends with a dot and a target."""
    whole = frozenset(targets)
    endings = tuple(f".{target}" for target in whole)
    return frozenset(name for name in names if name in whole or name.endswith(endings))


def _all_linear(architecture: Architecture, candidates: Iterable[str]) -> frozenset[str]:
    """``_maybe_include_all_linear_layers``: every linear but the output embedding."""
    return frozenset(candidates) & {linear.name for linear in architecture.linears} - {architecture.head}


def _find_with_fused_experts(
    architecture: Architecture, targets: str | Sequence[str], candidates: Iterable[str], names: dict[str, str]
) -> tuple[frozenset[str], frozenset[str]]:
    """``_convert_peft_config_moe``: targets as last words, those of former expert linears as parameters."""
    candidates = tuple(candidates)
    words = _last_words(architecture, targets, candidates, names) if isinstance(targets, str) else targets
    former = {word: next((old for old in names if word == old or word.endswith(f".{old}")), None) for word in words}
    chosen = {old for old in former.values() if old}
    _refuse_half_a_pair(chosen, names)
    rest = [word for word, old in former.items() if old is None]
    modules = (
        _ending_with(rest, candidates) if isinstance(targets, str) else _find_names(architecture, rest, candidates)
    )
    parameters = _ending_with((names[old] for old in chosen), [p.name for p in architecture.parameters])
    return modules, parameters


def _last_words(
    architecture: Architecture, targets: str, candidates: Iterable[str], names: dict[str, str]
) -> frozenset[str]:
    """``_resolve_string_target_modules``: the last words of what a text matches, in whatever layer it does.

    An expert's former name is probed where its parameter is now: ``model.layers.0.mlp.experts.gate_proj``.
    """
    if targets.lower() == ALL_LINEAR:
        return frozenset(name.rpartition(".")[2] for name in _all_linear(architecture, candidates)) | names.keys()
    matches = _pattern(targets).fullmatch
    parameters = [parameter.name for parameter in architecture.parameters]
    words = {name.rpartition(".")[2] for name in (*candidates, *parameters) if matches(name)}
    for old, new in names.items():
        holders = (name.removesuffix(new) for name in parameters if name.endswith(f".{new}"))
        if any(matches(holder + old) for holder in holders):
            words.add(old)
    if not words:
        raise _matches_nothing(architecture, [targets], " as a regular expression for whole module names")
    return frozenset(words)


def _refuse_half_a_pair(chosen: set[str], names: dict[str, str]) -> None:
    pair = {old for old, new in names.items() if new == FUSED_PAIR}
    if chosen & pair and not pair <= chosen:
        given, missing = ", ".join(sorted(chosen & pair)), ", ".join(sorted(pair - chosen))
        raise UsageError(
            f"targets name {given} without {missing}, but the experts hold both as one parameter, {FUSED_PAIR}",
            hint=f"add {missing}",
        )


def _saved_modules(architecture: Architecture, targets: Sequence[str]) -> tuple[str, ...]:
    """``_set_trainable``: every module whose name ends with a target, at a dot or not."""
    missing = [target for target in targets if not any(name.endswith(target) for name in architecture.modules)]
    if missing:
        raise _matches_nothing(architecture, missing, what="modules_to_save")
    saved = sorted(name for name in architecture.modules if name.endswith(tuple(targets))) if targets else []
    for name in saved:
        if name == architecture.layers_name or name.startswith(tuple(f"{other}." for other in saved if other != name)):
            raise UsageError(
                f"modules_to_save names {name}, which is a list of layers or lies in another module that is saved",
                hint="name modules that do not contain each other",
            )
    return tuple(saved)


def _exclusion(targets: Sequence[str]) -> Callable[[str], object]:
    """Which modules are never adapted because they are, or lie in, a module to save."""
    if not targets:
        return lambda _: False
    return _pattern("|".join(rf"(?:^|.*\.)(?:{target})(?:$|\..*)" for target in targets)).match


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise UsageError(f"{text!r} is not a valid regular expression: {error}") from error


def _adaptable(architecture: Architecture) -> frozenset[str]:
    """Linears and embeddings: the modules of these models that peft can wrap."""
    embeddings = (p.module for p in architecture.parameters if p.role in EMBEDDINGS)
    return frozenset(linear.name for linear in architecture.linears) | frozenset(embeddings)


def _refuse_not_adaptable(modules: frozenset[str], job: Job) -> None:
    if modules:
        raise UsageError(
            f"targets {job.targets!r} match the module {min(modules)}, but peft adapts linears and embeddings only",
            hint="write a pattern that ends with the names of linears, such as .*\\.(q_proj|v_proj)",
        )


def _refuse_adapted_and_saved(modules: frozenset[str], saved: tuple[str, ...]) -> None:
    for name in saved:
        if any(module == name or module.startswith(f"{name}.") for module in modules):
            raise UsageError(f"{name} is named by targets and by modules_to_save", hint="name it in one of them")


def _matches_nothing(
    architecture: Architecture, missing: Sequence[str], how: str = "", *, what: str = "targets"
) -> UsageError:
    listed = ", ".join(map(repr, missing))
    verb = "matches" if len(missing) == 1 else "match"
    known = {linear.short_name: None for linear in architecture.linears} | {architecture.embedding: None}
    names = ", ".join(name for name in known if not name.isdigit())
    return UsageError(f"{what}: {listed} {verb} no module{how}", hint=f"this model has {names}")
