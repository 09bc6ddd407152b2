"""What a deep validation fetches from the Hugging Face hub: small files only, through its ordinary client and cache."""

from __future__ import annotations

from pathlib import Path

from learner.errors import InputError
from services.secrets import mask

SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt")


def fetch_small_files(name: str, revision: str | None, key: str) -> Path:
    """The local folder with a hub model's configuration and tokenizer; its weights too, where the cache holds them already.

    Raises:
        InputError: the model is not there, or the hub cannot be reached.
    """
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(SMALL_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        reason = mask(str(error).strip().splitlines()[0]) if str(error).strip() else type(error).__name__
        raise InputError(
            f"{key}: {name} could not be fetched from the Hugging Face hub ({reason}); check the name, the network and the access token"
        ) from None
