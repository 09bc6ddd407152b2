"""What workers on other machines log comes into the job's folder whole and once, also after the controller was restarted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from services.jobs.log_collector import LogCollector
from workers import logs
from workers.errors import CallTimeout


class Machine:
    """Stands for the link to a worker whose files lie in a folder of another machine."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.name, self.folder, self.calls = "job-sampler-0", folder, 0
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(logs, "PIECE_BYTES", 3)
        monkeypatch.setattr(logs, "_own", (folder, self.name))

    def write(self, text: str, attempt: int = 1) -> None:
        with (self.folder / f"{self.name}-{attempt}.log").open("a") as file:
            file.write(text)

    async def call(self, method: str, mark: str, sizes: Mapping[str, int], **_: Any) -> Any:
        assert method == "unread_log"
        self.calls += 1
        return logs.unread(mark, "10.0.0.3", sizes)


async def collected(folder: Path, machine: Machine) -> str:
    collector = LogCollector(folder)  # a restarted controller's knows no more than the folder
    for _ in range(10):
        await collector.collect(machine, 1.0)  # type: ignore[arg-type]
    return "".join(path.read_text() for path in sorted(folder.glob("*.log")))


async def test_files_of_another_machine_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path / "theirs", monkeypatch)
    machine.write("first words")
    assert await collected(tmp_path / "ours", machine) == "first words"
    machine.write(", last words")
    machine.write("; a successor's", attempt=2)
    assert await collected(tmp_path / "ours", machine) == "first words, last words; a successor's"


async def test_a_worker_beside_the_controller_is_asked_once_for_each_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path, monkeypatch)
    machine.write("here already")
    assert await collected(tmp_path, machine) == "here already" and machine.calls == 1
    collector = LogCollector(tmp_path)
    await collector.collect(machine, 1.0)  # type: ignore[arg-type]
    collector.started(machine.name)
    await collector.collect(machine, 1.0)  # type: ignore[arg-type]
    assert machine.calls == 3


async def test_a_full_disk_costs_logs_and_not_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path / "theirs", monkeypatch)
    machine.write("words")
    ours = tmp_path / "ours"
    collector = LogCollector(ours)
    (ours / f"{machine.name}-1@10.0.0.3.log").mkdir()  # cannot be written to, as root cannot either
    await collector.collect(machine, 1.0)  # type: ignore[arg-type]


async def test_a_worker_that_does_not_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(tmp_path / "theirs", monkeypatch)

    async def never(*_: Any, **__: Any) -> Any:
        raise CallTimeout("no answer within 1 s")

    monkeypatch.setattr(machine, "call", never)
    with pytest.raises(CallTimeout):
        await LogCollector(tmp_path / "ours").collect(machine, 1.0)  # type: ignore[arg-type]
