"""A worker's log files: text with whatever its process prints, and a JSON line for each record."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from workers import logs

SCRIPT = """
import logging, os, sys
from pathlib import Path
from workers import logs
log = logs.write_to(Path(sys.argv[1]), "job-abcdef-sampler-0")
print("as an engine prints", flush=True)
os.system("echo a child")
log.info("group %s", "g1", extra={"group_id": "g1", "request_id": None})
try:
    raise ValueError("of a line\\nand another")
except ValueError:
    logging.getLogger("other").exception("it failed")
"""


def run(folder: Path) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT, str(folder)], check=True, timeout=60)


def test_records_are_json_lines_beside_the_text(tmp_path: Path) -> None:
    folder = tmp_path / "job-abcdef" / "logs"
    run(folder)
    text = (folder / "job-abcdef-sampler-0-1.log").read_text()
    assert "as an engine prints" in text and "a child" in text and "group g1" in text and "Traceback" in text
    said, failed = [json.loads(line) for line in (folder / "job-abcdef-sampler-0-1.jsonl").read_text().splitlines()]
    assert said.pop("time").endswith("+00:00")
    assert said == {
        "level": "info",
        "logger": "job-abcdef-sampler-0",
        "message": "group g1",
        "job_id": "job-abcdef",
        "worker": "sampler-0",
        "group_id": "g1",
    }
    assert failed["level"] == "error" and "ValueError: of a line\nand another" in failed["exception"]


def test_a_restarted_worker_writes_files_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "job-abcdef" / "logs"
    run(folder)
    run(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        f"job-abcdef-sampler-0-{attempt}.{form}" for attempt in (1, 2) for form in ("jsonl", "log")
    ]


def test_what_a_worker_wrote_on_another_machine_is_fetched_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = tmp_path / "ours" / "job" / "logs", tmp_path / "theirs" / "job" / "logs"
    theirs.mkdir(parents=True)
    files = {"job-learner-1.log": b"0123456789", "job-learner-1.jsonl": b"{}\n", "job-learner-2.log": b"again"}
    others = {"job-learner-1-1.log": b"another worker's", "job-learner-x.log": b"no attempt's"}
    for name, content in {**files, **others}.items():
        (theirs / name).write_bytes(content)
    monkeypatch.setattr(logs, "_own", (theirs, "job-learner"))
    monkeypatch.setattr(logs, "PIECE_BYTES", 4)
    mark, found = logs.mark(ours), dict[str, bytes]()
    assert logs.mark(ours) == mark, "it is made once"
    while pieces := logs.unread(mark, "10.0.0.3", {name: len(content) for name, content in found.items()}):
        for name, (offset, piece) in pieces.items():
            assert offset == len(found.get(name, b"")) and len(piece) <= 4
            found[name] = found.get(name, b"") + piece
    assert found == {name.replace(".", "@10.0.0.3.", 1): content for name, content in files.items()}

    with (theirs / "job-learner-2.log").open("ab") as file:
        file.write(b"!")
    pieces = logs.unread(mark, "10.0.0.3", {name: len(content) for name, content in found.items()})
    assert pieces == {"job-learner-2@10.0.0.3.log": (5, b"!")}


def test_a_worker_that_writes_to_the_jobs_own_folder_has_nothing_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "job-learner-1.log").write_bytes(b"here already")
    monkeypatch.setattr(logs, "_own", (tmp_path, "job-learner"))
    assert logs.unread(logs.mark(tmp_path), "10.0.0.3", {}) is None
