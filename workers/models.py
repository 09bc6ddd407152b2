"""Whether the machine of a worker has a model that the job names. Versions travel as bytes (rule 13); the models that they build upon do not."""

from __future__ import annotations

import socket
from pathlib import Path

from learner.errors import InputError


def require_folder(key: str, name: str) -> None:
    """See that this machine has a folder that the job names.

    Args:
        key: the job's key that names it, such as ``policy.adapter``.
        name: an absolute path, the same on every machine; names on the hub are left to their loaders.

    Raises:
        InputError: the folder is not on this machine.
    """
    if Path(name).is_absolute() and not Path(name).is_dir():
        raise InputError(
            f"{key}: the machine {socket.gethostname()}, where this worker runs, has no folder {name}; put it there under the same path, as on "
            "every machine of this role"
        )


def require_policy(policy: str, *, revision: str | None = None) -> None:
    """See that this machine has the base model, before an engine is started on it.

    Args:
        policy: an absolute path, or a name on the hub, which each machine fetches into its own cache.
        revision: of a name on the hub.

    Raises:
        InputError: the folder is not on this machine; or the model is not in its cache and the hub cannot be reached.
    """
    require_folder("policy.model", policy)
    if Path(policy).is_absolute():
        return
    import httpx
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        hf_hub_download(policy, "config.json", revision=revision)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"policy.model: {policy} is not in the hub's cache of the machine {socket.gethostname()}, where this worker runs, and cannot be "
            f"fetched there ({reason}); let the machine reach the hub, or put the model into its cache"
        ) from None
