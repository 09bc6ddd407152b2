"""What the script that installs the tests' system packages says and does, with programs of its own in place of the machine's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "system_packages.sh"


def program(folder: Path, name: str, script: str = "exit 0") -> None:
    """A program that does as the lines say, and notes how it was called."""
    path = folder / name
    path.write_text(f'#!/bin/bash\necho "{name} $*" >> {folder}/calls\n{script}\n')
    path.chmod(0o755)


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    for name in ("bash", "env"):
        if not (folder / name).exists():
            (folder / name).symlink_to(f"/usr/bin/{name}")
    return subprocess.run(
        [str(SCRIPT)], env={**os.environ, "PATH": str(folder)}, capture_output=True, text=True, timeout=30
    )


def calls(folder: Path) -> str:
    path = folder / "calls"
    return path.read_text() if path.exists() else ""


def test_nothing_is_done_where_nothing_is_missing(tmp_path: Path) -> None:
    for name in ("initdb", "chromium", "prometheus", "apt-get"):
        program(tmp_path, name)
    done = run(tmp_path)
    assert (done.returncode, done.stdout, done.stderr, calls(tmp_path)) == (0, "", "", "")


def test_root_installs_what_is_missing(tmp_path: Path) -> None:
    program(tmp_path, "initdb")
    program(tmp_path, "prometheus")
    program(tmp_path, "id", "echo 0")
    program(tmp_path, "apt-get")
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (0, "tests: installing chromium\n")
    assert "apt-get install -y -qq --no-install-recommends chromium" in calls(tmp_path)


@pytest.mark.parametrize("sudo", [True, False])
def test_others_install_by_sudo_or_say_the_command(tmp_path: Path, sudo: bool) -> None:
    program(tmp_path, "initdb")
    program(tmp_path, "prometheus")
    program(tmp_path, "id", "echo 1000")
    program(tmp_path, "apt-get")
    program(tmp_path, "sudo", '[ "$1" = -n ] || "$@"' if sudo else "exit 1")
    done = run(tmp_path)
    assert done.returncode == 0
    assert ("apt-get install" in calls(tmp_path)) is sudo
    assert ("chromium missing, and only root can install: run sudo apt-get install chromium" in done.stderr) is not sudo


def test_a_failed_installation_is_one_sentence(tmp_path: Path) -> None:
    program(tmp_path, "initdb")
    program(tmp_path, "prometheus")
    program(tmp_path, "id", "echo 0")
    program(tmp_path, "apt-get", "exit 100")
    done = run(tmp_path)
    assert done.returncode == 0
    assert done.stderr == "tests: chromium could not be installed; run apt-get install chromium and see why.\n"
