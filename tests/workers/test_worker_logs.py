"""A worker's log files: text with whatever its process prints, and a JSON line for each record."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
