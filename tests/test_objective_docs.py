"""The pages on objectives say what the code says, and the example of a new objective works as an installed package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from learner.objectives.parameters import BUILT_IN, ObjectiveParameters

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "adding-an-objective.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("model", BUILT_IN, ids=lambda model: str(model.model_fields["kind"].default))
def test_the_page_has_every_kind_with_its_parameters_and_defaults(model: type[ObjectiveParameters]) -> None:
    kind = str(model.model_fields["kind"].default)
    found = re.search(rf"^### `{kind}`$(.*?)(?=^### |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    section = found[1]
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", section, re.MULTILINE))
    expected = {
        name: field.get_default(call_default_factory=True)
        for name, field in model.model_fields.items()
        if name not in ("kind", "reference")
    }
    assert rows == {
        name: str(getattr(value, "kind", value)).lower()
        if isinstance(value, bool)
        else str(getattr(value, "kind", value))
        for name, value in expected.items()
    }
    for part in ("**Needs**", "**Good at**", "**Not when**"):
        assert part in section
    assert re.search(rf"^\| `{kind}` \| [0-9.]+ \|$", PAGE, re.MULTILINE) or kind == "chase", "the table of costs"


def test_the_page_has_no_kind_that_does_not_exist() -> None:
    kinds = {str(model.model_fields["kind"].default) for model in BUILT_IN}
    assert set(re.findall(r"^### `([\w-]+)`$", PAGE, re.MULTILINE)) == kinds


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The guide's example, installed as a package's metadata has it."""
    code = re.search(r"```python\n# (huber_objective\.py)\n(.*?)```", GUIDE, re.DOTALL)
    entry = re.search(r'```toml\n\[project\.entry-points\."([\w.]+)"\]\n(\w+) = "([\w:]+)"', GUIDE)
    assert code is not None and entry is not None
    (tmp_path / code[1]).write_text(code[2], encoding="utf-8")
    metadata = tmp_path / "huber_objective-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: huber-objective\nVersion: 1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(f"[{entry[1]}]\n{entry[2]} = {entry[3]}\n", encoding="utf-8")
    return tmp_path


def run(installed: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def test_the_guides_objective_is_documented_like_any_other(installed: Path) -> None:
    assert "HuberParameters" in run(installed, "-m", "services.cli.main", "schema")
    assert "huber" in run(installed, "-m", "services.cli.main", "objectives")


LEARN = """
from learner.errors import InputError
from learner.objectives import build_objective
from learner.trainer import Trainer
from tests.learner.builders import random_groups, tiny_model, trainer_config

try:
    build_objective({"kind": "huber", "target": -1})
except InputError as error:
    print("refused:", error)
trainer = Trainer(trainer_config(objective={"kind": "huber", "target": 3}), lambda version: {}, base=tiny_model())
trainer.begin_version(1, 0)
margins = [trainer.step(random_groups(4), 0).metrics["margin"] for _ in range(30)]
print("margins:", *(f"{margin:.3f}" for margin in margins))
"""


def test_the_guides_objective_is_checked_and_trains_towards_its_target(installed: Path) -> None:
    refused, margins = run(installed, "-c", LEARN).strip().splitlines()[-2:]
    assert "objective.huber.target" in refused
    values = [float(value) for value in margins.split()[1:]]
    assert values[0] == pytest.approx(0, abs=1e-3)
    assert values[-1] == pytest.approx(3, abs=0.7)
