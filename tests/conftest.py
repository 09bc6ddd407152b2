"""What every test stands on: one thread, no hub, a home of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch, transformers or ray are imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

# Machines that test are often busy: an example's time says nothing. The same examples each time, so that what fails is what was changed;
# `pytest --hypothesis-profile explore` looks for new ones.
settings.register_profile("sparring", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("sparring")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for Sparring, so that no test sees or touches the user's; settings of the user's shell do not count either."""
    for name in [name for name in os.environ if name.startswith("SPARRING_")]:
        monkeypatch.delenv(name)
    path = tmp_path / "sparring-home"
    monkeypatch.setenv("SPARRING_HOME", str(path))
    return path
