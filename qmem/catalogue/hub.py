"""The one file that a hub is asked for: a model's ``config.json``.  Never weights, never code.

``huggingface_hub`` downloads and caches it; where that library or the network is missing, the hub has no answer.
"""

import os
import re

from qmem.errors import UnavailableError, UsageError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
CONNECT_SECONDS = 1.5
"""How long the hub may take to accept a connection; huggingface_hub itself retries for about 20 s."""


def hub_config_path(name: str) -> str | None:
    """The cached ``config.json`` of a hub id; nothing where the hub cannot be asked or does not know the id.

    Raises:
        UsageError: the repository has no ``config.json``.
        UnavailableError: the repository asks for a login or a licence.
    """
    if _HUB_ID.fullmatch(name) is None:
        return None
    # One file is all that is asked for: huggingface_hub's telemetry would make requests of its own.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import huggingface_hub as hub  # noqa: PLC0415 - optional, and 0.2 s
    except ImportError:
        return None
    cached = hub.try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        return cached
    if hub.constants.HF_HUB_OFFLINE or not _is_reachable(hub.constants.ENDPOINT):
        return None
    return _download(name)


def _download(name: str) -> str | None:
    from huggingface_hub import errors, hf_hub_download  # noqa: PLC0415

    try:
        return str(hf_hub_download(name, "config.json"))
    except errors.GatedRepoError as error:
        raise UnavailableError(
            f"{name} is gated on the hub",
            hint="accept its licence and log in (hf auth login), or name a folder with its config.json",
        ) from error
    except errors.LocalEntryNotFoundError:
        return None
    except errors.EntryNotFoundError as error:
        raise UsageError(f"{name} has no config.json on the hub", hint="name the base model in 16 bit") from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError):
        return None


def _is_reachable(endpoint: str) -> bool:
    """Whether something accepts a connection where the hub, or the proxy on the way to it, should be."""
    import socket  # noqa: PLC0415
    from urllib.parse import urlsplit  # noqa: PLC0415

    scheme = urlsplit(endpoint).scheme
    proxy = os.environ.get(f"{scheme}_proxy") or os.environ.get(f"{scheme}_proxy".upper())
    address = urlsplit(proxy or endpoint)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
