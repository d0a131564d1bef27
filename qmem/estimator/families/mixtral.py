"""The step of a Mixtral: a Mistral's attention, experts in every layer, whose weights stay in fp32.

Source: transformers 5.23.0 ``models/mixtral/modeling_mixtral.py``.
"""

from qmem.errors import UnsupportedError
from qmem.estimator.families import llama
from qmem.estimator.families.mixture import assemble, sparse_block
from qmem.estimator.families.parts import CausalLM, Parts
from qmem.estimator.paper import Module


def build(parts: Parts) -> CausalLM:
    """A Llama with experts.

    Raises:
        UnsupportedError: the config adds noise to what the router sees.
    """
    config = parts.config
    if config["router_jitter_noise"]:
        raise UnsupportedError(
            f"router_jitter_noise = {config['router_jitter_noise']} is not modelled yet",
            hint="set it to 0 in config.json, as Mixtral's own is",
        )
    of = llama.options(parts)._replace(window=config["sliding_window"])
    return assemble(parts, of, _block)


def _block(parts: Parts, layer: int, modules: dict[str, Module]) -> Module:
    return sparse_block(parts, layer, modules, normalizes=True, keeps_fp32=True)
