"""The flags of a job, the same for every verb, and the job that they make.

It owns names, help and the reading of text into plain values.  What a field may be is ``qmem.job``'s to say: the
choices offered here are taken from its types, and only what the user set is handed on.
"""

from collections.abc import Iterable
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin

import click

from qmem.cli.command import SectionOption
from qmem.cli.streams import write_note
from qmem.errors import UsageError
from qmem.job.job import DTYPE_ALIASES, OPTIMIZER_ALIASES, Job, make_job

if TYPE_CHECKING:
    _TextChoice = click.Choice[str]
else:
    _TextChoice = click.Choice  # generic since click 8.2 only

REGEX_SIGNS = frozenset("\\^$*+?{}[]|()")
"""A dot is none of them: ``self_attn.q_proj`` names a module."""

ALL_LINEAR = "all-linear"
_WORDS = {"yes": True, "true": True, "no": False, "false": False}


class Flag(NamedTuple):
    """A field of a job that has a flag of its own name.

    ``otherwise`` says what happens without the flag where the field's default is to let the method or the stack
    decide.
    """

    field: str
    section: str
    help: str
    otherwise: str = ""


BASE, ADAPTER, STEP, PROGRAM = "Base weights", "Adapter", "Training step", "Program"
SECTIONS = (BASE, ADAPTER, STEP, PROGRAM)

FLAGS = (
    Flag("method", BASE, "What is trained"),
    Flag("quant", BASE, "Storage of the base weights", "nf4 for qlora, else none"),
    Flag("double_quant", BASE, "Quantize the quantization constants too"),
    Flag("dtype", BASE, "Dtype of the weights as loaded"),
    Flag("rank", ADAPTER, "Rank of the adapters"),
    Flag("alpha", ADAPTER, "LoRA's alpha"),
    Flag("dropout", ADAPTER, "LoRA's dropout"),
    Flag("targets", ADAPTER, "Modules with an adapter: all-linear, names (q_proj,v_proj) or a regular expression"),
    Flag("adapter_dtype", ADAPTER, "Dtype of the adapters", "the stack decides"),
    Flag("batch", STEP, "Sequences a device and micro-step"),
    Flag("grad_accum", STEP, "Micro-steps an optimizer step"),
    Flag("seq", STEP, "Tokens a sequence"),
    Flag("checkpointing", STEP, "Gradient checkpointing"),
    Flag("optimizer", STEP, "transformers' name of the optimizer"),
    Flag("attention", STEP, "Implementation of attention", "sdpa, or eager where a family has no sdpa"),
    Flag("loss", STEP, "How logits and loss are computed"),
    Flag("compute_dtype", STEP, "Dtype of 4-bit products and of autocast"),
    Flag("amp", STEP, "Autocast", "the stack decides"),
    Flag("stack", PROGRAM, "Software stack, with versions if need be: hf@transformers=5.23.0"),
    Flag("expandable_segments", PROGRAM, "The allocator grows its segments"),
)
SWITCHES = ("expandable_segments",)
"""Fields that a flag can only switch on."""

_DEFAULTS: dict[str, Any] = dict(
    zip(Job.__struct_fields__[-len(Job.__struct_defaults__) :], Job.__struct_defaults__, strict=True)
)
SETTABLE = tuple(
    name for name in Job.__struct_fields__ if name not in {"model", "facts", *(flag.field for flag in FLAGS)}
)
"""The fields without a flag, which ``--set`` takes beside the facts of a stack."""


class Named(_TextChoice):
    """A choice that also takes the other spellings a job understands."""

    def __init__(self, choices: Iterable[str], spellings: Iterable[str]) -> None:
        super().__init__(tuple(choices))
        self.spellings = frozenset(spellings)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value as it stands; what a spelling means is decided where the job is made."""
        return value if value in self.spellings else super().convert(value, param, ctx)


def job_parameters() -> list[click.Parameter]:
    """``MODEL`` and every flag of a job."""
    return [
        click.Argument(["model"], required=False, metavar="MODEL", shell_complete=_complete_model),
        *(_option(flag) for flag in FLAGS),
        SectionOption(
            ["--set", "assignments"], section=PROGRAM, multiple=True, metavar="FACT=VALUE",
            help=f"A fact of the stack, or a field without a flag ({', '.join(SETTABLE)}). Repeatable.",
        ),
        SectionOption(
            ["--job", "job_file"], section=PROGRAM, metavar="FILE",
            help="TOML file with fields of the job, named as the flags with underscores. Flags win.",
        ),
        SectionOption(
            ["--gpu"], section=PROGRAM, metavar="GPU", shell_complete=_complete_gpu,
            help="The card to judge by; see qmem gpus.",
        ),
    ]  # fmt: skip


def job_from_flags(given: dict[str, Any], nameless: bool = False) -> Job:
    """The job that ``MODEL``, the job file and the flags describe; ``given`` are click's parameters.

    ``nameless`` allows that no model is named; it is the empty name then.

    Raises:
        UsageError: no model, an unreadable job file, or fields that are wrong or contradict each other.
    """
    fields: dict[str, Any] = {}
    if given["job_file"] is not None:
        from qmem.job.file import read_job_file

        fields = read_job_file(given["job_file"])
    facts = {**fields.pop("facts", {})}
    for name, value in _assignments(given["assignments"]):
        (fields if name in SETTABLE else facts)[name] = value
    fields |= _set_by_flags(given)
    if nameless:
        fields.setdefault("model", "")
    if "model" not in fields:
        raise UsageError("no model is named", hint="write for example qmem estimate Qwen3-14B")
    job = make_job({**fields, "facts": facts})
    return job if nameless or "attention" in fields else _with_usual_attention(job)


def _with_usual_attention(job: Job) -> Job:
    from qmem.catalogue.attention import with_usual_attention

    job, note = with_usual_attention(job)
    if note:
        write_note(note)
    return job


def _set_by_flags(given: dict[str, Any]) -> dict[str, Any]:
    names = ("model", *(flag.field for flag in FLAGS))
    fields = {name: given[name] for name in names if given[name] is not None}
    if "targets" in fields:
        fields["targets"] = read_targets(fields["targets"])
    return fields


def read_targets(text: str) -> str | tuple[str, ...]:
    """``all-linear``, a regular expression where the text has a sign of one, else the names between commas."""
    if text == ALL_LINEAR or REGEX_SIGNS & set(text):
        return text
    return _names(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in (part.strip() for part in text.split(",")) if name)


def _assignments(texts: Iterable[str]) -> list[tuple[str, Any]]:
    """The pairs of ``--set``, typed where they set a field.  Raises ``UsageError``."""
    pairs: dict[str, Any] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise UsageError(f"--set {text!r} is not FACT=VALUE", hint="write for example --set cast_norms=fp32")
        if name in pairs:
            raise UsageError(f"--set {name} is given more than once")
        pairs[name] = _typed(name, value)
    return list(pairs.items())


def _typed(name: str, text: str) -> Any:
    """The value of a field by the type of its default; a fact stays text."""
    if name in Job.__struct_fields__ and name not in SETTABLE:
        raise UsageError(f"--set does not take {name!r}", hint=_instead(name))
    default = _DEFAULTS[name] if name in SETTABLE else ""
    if isinstance(default, bool):
        if text.lower() not in _WORDS:
            raise UsageError(f"{name} is {text!r}, but must be yes or no")
        return _WORDS[text.lower()]
    if isinstance(default, tuple):
        return _names(text)
    return _whole(name, text) if isinstance(default, int) else text


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{name} is {text!r}, but must be a whole number") from None


def _instead(name: str) -> str:
    if name == "model":
        return "name the model as an argument"
    return "set each fact by itself: --set FACT=VALUE" if name == "facts" else f"it has a flag: {_declaration(name)}"


def _declaration(field: str) -> str:
    flag = f"--{field.replace('_', '-')}"
    return f"{flag}/--no-{flag[2:]}" if _kind(field) is bool and field not in SWITCHES else flag


def _kind(field: str) -> Any:
    """The type of a field, without the ``None`` that lets others decide."""
    kind = Job.__annotations__[field]
    return get_args(kind)[0] if isinstance(kind, UnionType) or type(None) in get_args(kind) else kind


def _option(flag: Flag) -> SectionOption:
    kind = _kind(flag.field)
    settings: dict[str, Any] = {"default": None, "section": flag.section, "help": _help(flag, kind)}
    if kind is bool:
        # A pair of flags, or one that only switches on; click makes either from the declaration.
        settings |= {"is_flag": True} | ({"flag_value": True} if flag.field in SWITCHES else {})
        return SectionOption([_declaration(flag.field), flag.field], **settings)
    return SectionOption([_declaration(flag.field), flag.field], type=_type(kind), metavar=_metavar(kind), **settings)


def _type(kind: Any) -> Any:
    if get_origin(kind) is Literal:
        return Named(get_args(kind), {*OPTIMIZER_ALIASES, *DTYPE_ALIASES})
    return kind if kind in (int, float) else str


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "NAME"
    return "NUMBER" if kind in (int, float) else "TEXT"


def _help(flag: Flag, kind: Any) -> str:
    choices = f": {', '.join(get_args(kind))}" if get_origin(kind) is Literal else ""
    default = _DEFAULTS[flag.field]
    shown = {True: "on", False: "off"}[default] if isinstance(default, bool) else default
    return f"{flag.help}{choices}.  [{flag.otherwise or shown}]"


def _complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    from qmem.catalogue import all_models

    return [model.id for model in all_models() if model.id.lower().startswith(incomplete.lower())]


def _complete_gpu(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001
    from qmem.catalogue import all_gpus

    return [gpu.id for gpu in all_gpus() if gpu.id.startswith(incomplete.lower())]
