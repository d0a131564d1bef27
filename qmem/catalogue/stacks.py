"""Software stacks: what a library around the model decides about memory, as data with versions.

The same hyperparameters cost gigabytes more or less by stack.  A job names its stack and may set single facts;
here they are resolved into one :class:`StackFacts`.  Facts that a stack cannot run are refused.
"""

from typing import Literal

import msgspec

from qmem.catalogue.older import Older
from qmem.catalogue.packaged import read_packaged
from qmem.errors import UnsupportedError, UsageError
from qmem.job import Job


class Fact(msgspec.Struct, frozen=True):
    """One decision of a stack: the values it can take, what it means, and where the default was read."""

    values: tuple[str, ...]
    meaning: str
    source: str


class Release(msgspec.Struct, frozen=True):
    """Older versions of a stack's libraries, what differs there, and where the versions and facts were read.

    ``program`` names the program of those libraries.
    """

    versions: dict[str, str]
    facts: dict[str, str]
    program: str
    source: str


class Stack(msgspec.Struct, frozen=True):
    """A stack: its versions, as they were checked, and its facts.

    ``fixed`` are the facts that it cannot run otherwise; ``not_quantized`` are those that differ where the base is not
    quantized; ``older`` are other versions that it is known with.
    """

    title: str
    versions: dict[str, str]
    facts: dict[str, str]
    fixed: tuple[str, ...] = ()
    not_quantized: dict[str, str] = {}
    older: tuple[Release, ...] = ()
    program: Older = Older()


class _Catalogue(msgspec.Struct, frozen=True):
    facts: dict[str, Fact]
    programs: dict[str, Older]
    stacks: dict[str, Stack]


class StackFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A stack with the facts of one job settled, typed for the program that runs on them."""

    name: str
    title: str
    versions: dict[str, str]
    kbit_preparation: bool
    cast_norms: bool
    cast_embeddings: bool
    autocast: bool
    adapter_dtype: Literal["fp32", "bf16", "fp16"]
    reentrant: bool
    clip_gradients: bool
    trainer_loop: bool
    token_mean: bool
    attention_mask: bool
    fused_head: bool
    sft_cast: bool
    older: Older = Older()


def stack_names() -> tuple[str, ...]:
    """The stacks that are built."""
    return tuple(_catalogue().stacks)


def stack_facts() -> dict[str, Fact]:
    """Every fact that ``--set`` knows, by name."""
    return _catalogue().facts


def resolve_stack(job: Job) -> StackFacts:
    """The stack of a job with its overrides.

    Raises:
        UsageError: an unknown stack, fact or value, or facts that contradict the job.
        UnsupportedError: a version that is not built yet, or a fact that the stack cannot run.
    """
    name = job.stack.partition("@")[0]
    stack = _released(name, _named(name), named_versions(job))
    defaults = stack.facts if job.effective_quant != "none" else {**stack.facts, **stack.not_quantized}
    chosen = {**defaults, **_checked(job.facts)}
    _check_fixed(name, stack, defaults, chosen)
    if job.amp is not None:
        chosen["autocast"] = _agreed("autocast", job, "amp", "yes" if job.amp else "no")
    if job.adapter_dtype is not None:
        chosen["adapter_dtype"] = _agreed("adapter_dtype", job, "adapter_dtype", job.adapter_dtype)
    _check_preparation(job, chosen)
    if job.effective_quant == "none" or chosen["kbit_preparation"] == "no":
        # The preparation is for quantized bases; without it nothing is cast.
        chosen.update(kbit_preparation="no", cast_norms="no", cast_embeddings="no")
    typed = {fact: value if fact == "adapter_dtype" else value != "no" for fact, value in chosen.items()}
    named = {"name": job.stack, "title": stack.title, "versions": stack.versions, "older": stack.program}
    return msgspec.convert({**named, **typed}, StackFacts)


def facts_in_force(facts: StackFacts) -> dict[str, str]:
    """The facts as words, for output: ``{"cast_norms": "fp32", "autocast": "yes", ...}``."""
    return {name: _word(name, getattr(facts, name)) for name in _catalogue().facts}


def _word(name: str, value: bool | str) -> str:
    if isinstance(value, str):
        return value
    return _catalogue().facts[name].values[0] if value else "no"


def _named(name: str) -> Stack:
    catalogue = _catalogue()
    if name not in catalogue.stacks:
        raise UsageError(f"there is no stack {name!r}", hint=_known_stacks())
    return catalogue.stacks[name]


def _known_stacks() -> str:
    return f"use one of {', '.join(stack_names())}"


def named_versions(job: Job) -> dict[str, str]:
    """The versions that the job's stack names: ``{"transformers": "4.48.1"}`` for ``hf@transformers=4.48.1``.

    Raises:
        UsageError: a library without a version, or one that the stack does not have.
    """
    name, _, text = job.stack.partition("@")
    known, named = _named(name).versions, {}
    for pair in filter(None, text.split(",")):
        library, _, version = pair.partition("=")
        if library not in known:
            raise UsageError(
                f"{pair!r} names no library of the stack {name}",
                hint=f"write {name}@LIBRARY=VERSION with one of {', '.join(known)}",
            )
        if not version:
            raise UsageError(f"{pair!r} names no version", hint=f"write {name}@{library}={known[library]}")
        named[library] = version
    return named


def _released(name: str, stack: Stack, named: dict[str, str]) -> Stack:
    """The stack with the newest of its sets of versions that has all those that are named."""
    releases = (Release(stack.versions, {}, "", ""), *stack.older)
    for release in releases:
        if named.items() <= release.versions.items():
            return stack if release is releases[0] else _with_release(stack, release)
    asked = " with ".join(f"{library} {version}" for library, version in named.items())
    known = "; or ".join(", ".join(f"{library} {one.versions[library]}" for library in named) for one in releases)
    raise UnsupportedError(
        f"the stack {name} is not known with {asked}; it is with {known}",
        hint=f"use --stack {name}, and --set for the facts that differ",
    )


def _with_release(stack: Stack, release: Release) -> Stack:
    facts = {**stack.facts, **release.facts}
    return msgspec.structs.replace(
        stack, versions=release.versions, facts=facts, program=_catalogue().programs[release.program]
    )


def _checked(facts: dict[str, str]) -> dict[str, str]:
    known = _catalogue().facts
    for name, value in facts.items():
        if name not in known:
            raise UsageError(f"there is no fact {name!r}", hint=f"the facts are {', '.join(known)}")
        if value not in known[name].values:
            raise UsageError(f"the fact {name} is {value!r}, but must be one of {', '.join(known[name].values)}")
    return facts


def _check_fixed(name: str, stack: Stack, defaults: dict[str, str], chosen: dict[str, str]) -> None:
    for fact in stack.fixed:
        if chosen[fact] != defaults[fact]:
            raise UnsupportedError(f"the stack {name} cannot run {fact}={chosen[fact]}", hint=f"leave {fact} out")


def _agreed(fact: str, job: Job, field: str, value: str) -> str:
    if job.facts.get(fact, value) != value:
        raise UsageError(
            f"the job's {field} means {fact}={value}, but {fact}={job.facts[fact]} is set", hint="set only one of them"
        )
    return value


def _check_preparation(job: Job, chosen: dict[str, str]) -> None:
    """A cast that somebody asked for must have a preparation that carries it out."""
    asked = [name for name in ("cast_norms", "cast_embeddings") if job.facts.get(name) == "fp32"]
    asked += ["kbit_preparation"] if job.facts.get("kbit_preparation") == "yes" else []
    if asked and job.effective_quant == "none":
        raise UsageError(
            f"{asked[0]} is a fact of the k-bit preparation, but the base of method {job.method} is not quantized"
        )
    if asked and chosen["kbit_preparation"] == "no":
        raise UsageError(
            f"{asked[0]}=fp32 needs the k-bit preparation, which the stack {job.stack} leaves out",
            hint="add --set kbit_preparation=yes",
        )


_loaded: list[_Catalogue] = []


def _catalogue() -> _Catalogue:
    if not _loaded:
        text = read_packaged("stacks.json")
        _loaded.append(msgspec.json.decode(text, type=_Catalogue))
    return _loaded[0]
