"""Questions to the nodes of a real Ray."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from services.doctor.cluster import check_cluster, look
from services.doctor.findings import Status, worst
from workers import cluster
from workers.nodes import ask_nodes


@pytest.mark.slow
def test_every_node_answers_and_its_clock_is_known(tmp_path: Path) -> None:
    cluster.connect(None, cpus=1, home=tmp_path)
    try:
        (node,) = ask_nodes(platform.node)
        (report,) = look(str(tmp_path), None)
        findings = list(check_cluster([report]))
    finally:
        cluster.disconnect()
    assert node.answer == platform.node() == report.facts.host and "data" in node.roles
    assert abs(node.clock_offset_seconds) <= node.clock_doubt_seconds + 0.001 < 5
    assert worst(findings) is Status.OK
