"""Finding a model's files, and naming them by digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

from learner.errors import InputError

_PATTERNS = ["*.json", "*.safetensors", "*.bin", "*.model", "*.txt"]


def model_folder(model: str, *, field: str) -> Path:
    """The local folder of a model: the folder itself, or a download from the Hugging Face hub.

    Args:
        model: a local folder or a hub name.
        field: the setting that named it, for the error.

    Raises:
        InputError: it is neither a folder nor to be had from the hub.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=_PATTERNS))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{field}: {model!r} is not a local folder and could not be fetched from the Hugging Face hub ({reason}); give a folder "
            "that exists, or a hub name that this machine can reach"
        ) from error


def weight_files(folder: Path, *, field: str) -> list[Path]:
    """The files that hold a model's weights: safetensors where there are any, PyTorch's own format otherwise.

    Raises:
        InputError: there are none.
    """
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        files = sorted(folder.glob(pattern))
        if files:
            return files
    raise InputError(f"{field}: {folder} holds no weights; it needs model.safetensors or pytorch_model.bin")


def weights_digest(files: list[Path]) -> str:
    """SHA-256 over the weight files' contents, in the order given, as hex."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
