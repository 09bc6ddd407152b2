"""A Prometheus of the tests, set up as `deploy/prometheus` has it but for the address, the key and the pace."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "sparring.json"
START_SECONDS = 30.0


def program(name: str) -> str:
    """A program of Prometheus."""
    found = shutil.which(name)
    assert found, f"{name} is not there: install Prometheus (apt-get install prometheus), or run make packages"
    return found


def dashboard_queries() -> dict[str, list[str]]:
    """The dashboard's queries by title of their panel."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return {each["title"]: [target["expr"] for target in each["targets"]] for each in panels if each["type"] != "row"}


def configuration(target: str) -> dict[str, Any]:
    """What `deploy/prometheus/prometheus.yml` says, for a service without a key, each second."""
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    found["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    found["rule_files"] = [str(DEPLOY / "prometheus" / "rules.yml")]
    (scrape,) = found["scrape_configs"]
    del scrape["authorization"]
    scrape["static_configs"] = [{"targets": [target]}]
    return found


@contextlib.contextmanager
def server(target: str, folder: Path) -> Iterator[httpx.Client]:
    """A Prometheus that scrapes ``target`` (host:port); gives a client of its HTTP API."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration(target)))
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=10) as client:
            limit = time.monotonic() + START_SECONDS
            while not _ready(client):
                assert process.poll() is None and time.monotonic() < limit, (folder / "prometheus.log").read_text()
                time.sleep(0.1)
            yield client
    finally:
        process.terminate()
        process.wait(20)


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").is_success
    except httpx.TransportError:
        return False


def ask(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    """The newest values that a query of the dashboard has, with its variables filled in."""
    filled = query.replace("$job", ".*").replace("$__rate_interval", "10s")
    answer = client.get("/api/v1/query", params={"query": filled}).json()
    assert answer["status"] == "success", f"{filled}: {answer}"
    result: list[dict[str, Any]] = answer["data"]["result"]
    return result
