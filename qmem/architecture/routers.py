"""Whether the routers that an adapter wraps can run."""

from qmem.architecture.adapters import AdapterPlan
from qmem.architecture.architecture import Architecture
from qmem.errors import UsageError


def check_plain_routers(architecture: Architecture, plan: AdapterPlan) -> None:
    """Raise ``UsageError`` where peft adapts a router that returns two results.

    Its class is derived from ``nn.Linear``, so peft wraps it as one and asks what it returns for its dtype.
    Source: transformers 5.23.0 ``models/llama4/modeling_llama4.py`` (``Llama4Router``), peft 0.21.2
    ``tuners/lora/layer.py`` (``Linear.forward``).
    """
    derived = {linear.name for linear in architecture.linears if linear.role == "router" and not linear.plain}
    name = next((adapted.name for adapted in plan.adapted if adapted.name in derived), None)
    if name is not None:
        words = dict.fromkeys(linear.short_name for linear in architecture.linears if linear.role == "linear")
        raise UsageError(
            f"targets name {name}, which returns scores and logits: peft adapts it as a linear, and its forward fails",
            hint=f"name the other linears: --targets {','.join(words)}",
        )
