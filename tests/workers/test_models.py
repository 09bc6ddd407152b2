"""A worker says in one sentence what its machine lacks, before an engine is started."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from learner.errors import InputError
from workers.models import require_folder, require_policy


def test_a_folder_that_only_another_machine_has_is_named_with_the_machine(tmp_path: Path) -> None:
    require_policy(str(tmp_path))
    with pytest.raises(
        InputError, match=rf"^policy.model: the machine {socket.gethostname()}.*no folder {tmp_path}/none"
    ):
        require_policy(str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"^policy.adapter: .* put it there under the same path"):
        require_folder("policy.adapter", str(tmp_path / "none"))


def test_a_model_of_the_hub_is_in_this_machines_cache_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"^policy.model: a/model is not in the hub's cache of the machine") as refused:
        require_policy("a/model")
    assert "\n" not in str(refused.value)
    commit = "0" * 40
    folder = tmp_path / "models--a--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "config.json").write_text("{}")
    require_policy("a/model")
    require_folder("scorer.model.model", "a/model")
