"""All checks together: of this machine, or of every node of a cluster."""

from __future__ import annotations

from pathlib import Path

from services.doctor.cluster import check_cluster, look
from services.doctor.deep import check_imports
from services.doctor.facts import Facts, gather
from services.doctor.findings import Finding
from services.doctor.machine import check_machine
from services.doctor.ports import check_ports
from services.doctor.software import accelerator, check_gpus, check_software, read_lock
from services.settings import Settings

LOCKS = Path(__file__).resolve().parents[2] / "requirements"


def examine(settings: Settings, *, address: str | None, model: str | None, deep: bool) -> list[Finding]:
    """Look at everything.

    Args:
        settings: of this installation.
        address: of a Ray cluster, whose nodes are then looked at too.
        model: a model that the workers will read.
        deep: import the engines on this machine.

    Raises:
        InputError: no cluster answers at the address.
    """
    home = str(settings.home)
    here = gather(home, model)
    findings = _of_machine(here)
    findings += check_ports(here.host, settings.host, settings.port, ray_port=None if address else 6379)
    if deep:
        findings += check_imports(here.host)
    if address is not None:
        from workers import cluster

        cluster.connect(address, home=settings.home)
        try:
            reports = look(home, model)
        finally:
            cluster.disconnect()
        for report in reports:
            if report.facts.host != here.host:
                findings += _of_machine(report.facts)
        findings += check_cluster(reports)
    return findings


def _of_machine(facts: Facts) -> list[Finding]:
    path = LOCKS / f"{accelerator(facts.packages)}.txt"
    lock = read_lock(path.read_text()) if path.is_file() else None
    return [*check_software(facts, lock), check_gpus(facts, lock), *check_machine(facts)]
