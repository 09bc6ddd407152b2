"""What a machine is like, found in a fraction of a second without torch, Ray or vLLM. Runs on every node of a cluster."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import platform
import resource
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import psutil
from pydantic import Field

from learner.errors import InputError
from learner.records import Record

TRAP = ("torchaudio", "torchcodec", "torchvision")
"""vLLM for the CPU asks for these; their wheels are CUDA builds, and beside a CPU torch they break ``import transformers``."""

SMI = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits")
SMI_SECONDS = 20.0


class Gpu(Record):
    """One graphics card."""

    name: str
    driver: str
    memory_bytes: int


class Facts(Record):
    """One machine. Sizes are in bytes."""

    host: str
    python: str
    packages: dict[str, str] = Field(description="installed versions by normalised name")
    trap: tuple[str, ...] = Field(description="modules of `TRAP` that are there")
    libnuma: bool
    cpus: int
    gpus: tuple[Gpu, ...]
    memory: int
    memory_free: int
    shared_memory: int | None = Field(description="of /dev/shm; None where there is none")
    home: str
    home_writable: bool
    disk_free: int
    open_files: int = Field(description="soft limit of this process; -1: none")
    model: str | None = Field(default=None, description="what was found of the model that was asked for")
    model_fault: str | None = None


def gather(home: str, model: str | None = None) -> Facts:
    """Look at this machine.

    Args:
        home: Sparring's home; it need not exist.
        model: a folder that the workers will read.
    """
    place = next(folder for folder in (Path(home), *Path(home).parents) if folder.is_dir())
    memory = psutil.virtual_memory()
    found, fault = (None, None) if model is None else _model(model)
    return Facts(
        host=socket.gethostname(),
        python=platform.python_version(),
        packages=installed_packages(),
        trap=tuple(name for name in TRAP if importlib.util.find_spec(name)),  # never imported: that is what breaks
        libnuma=_has_library("libnuma.so.1"),
        cpus=psutil.cpu_count() or 1,
        gpus=gpus(),
        memory=memory.total,
        memory_free=memory.available,
        shared_memory=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        home=home,
        home_writable=_writable(place),
        disk_free=shutil.disk_usage(place).free,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        model=found,
        model_fault=fault,
    )


def gpus() -> tuple[Gpu, ...]:
    """NVIDIA's cards, as its own tool lists them; none where that is missing or fails."""
    if shutil.which(SMI[0]) is None:
        return ()
    try:
        said = subprocess.run(SMI, capture_output=True, text=True, timeout=SMI_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return read_gpus(said)


def read_gpus(listing: str) -> tuple[Gpu, ...]:
    """Cards from the lines of nvidia-smi: name, driver, MiB."""
    found = []
    for line in listing.strip().splitlines():
        name, driver, mebibytes = (part.strip() for part in line.rsplit(",", 2))
        found.append(Gpu(name=name, driver=driver, memory_bytes=int(mebibytes) << 20 if mebibytes.isdigit() else 0))
    return tuple(found)


def normalised(name: str) -> str:
    """A package's name as locks write it."""
    return name.lower().replace("_", "-").replace(".", "-")


def installed_packages() -> dict[str, str]:
    """Versions by normalised name."""
    return {normalised(each.name): each.version for each in importlib.metadata.distributions() if each.name}


def _has_library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _model(name: str) -> tuple[str | None, str | None]:
    """What a model's folder holds, or what is wrong with it."""
    from services.jobs.hub import fetch_small_files
    from services.jobs.model_files import read_model
    from services.jobs.paths import is_hub_name

    try:
        folder = Path(name)
        if not folder.exists() and is_hub_name(name):
            folder = fetch_small_files(name, None, "--model")
        model = read_model(folder, "--model")
    except InputError as error:
        return None, str(error)
    return f"{model.architecture or 'a model'} in {folder}", None
