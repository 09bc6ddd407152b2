"""Grafana's dashboard and Prometheus's set-up ask for what `/metrics` really tells."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import prometheus
import pytest
import yaml
from dashboard_world import fill, observed
from job_world import service
from prometheus_client.parser import text_string_to_metric_families

from services.api.app import create_app
from services.jobs.store import JobStore
from services.settings import Settings

METRIC = re.compile(r"\b(?:sparring_|vllm:)\w+")

ANSWER_SECONDS = 90.0
"""Longest wait for data: the shortest range of a rate, ten seconds, must hold a few scrapes, and the machine may be busy."""

GENERATED = 'rate(vllm:generation_tokens_total{job=~"$job"}[$__rate_interval])'


async def told(settings: Settings, store: JobStore) -> set[str]:
    """Names of all samples of `/metrics`, after one request."""
    transport = httpx.ASGITransport(create_app(settings, store))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8700") as http:
        await http.get("/v1/jobs")
        families = text_string_to_metric_families((await http.get("/metrics")).text)
    return {sample.name for family in families for sample in family.samples}


async def test_every_metric_that_dashboard_and_alerts_ask_for_is_one_of_the_service(home: Path) -> None:
    settings = Settings.load()
    fill(settings.store_url, home)
    store = JobStore(settings.store_url)
    names = await told(settings, store)
    store.close()
    asked = {
        name for queries in prometheus.dashboard_queries().values() for each in queries for name in METRIC.findall(each)
    }
    rules = yaml.safe_load((prometheus.DEPLOY / "prometheus" / "rules.yml").read_text())
    asked |= {name for group in rules["groups"] for rule in group["rules"] for name in METRIC.findall(rule["expr"])}
    assert len(asked) > 40 and asked <= names, sorted(asked - names)


def test_the_dashboard_names_the_data_source_that_is_provisioned_and_has_no_panel_twice() -> None:
    board = json.loads(prometheus.DASHBOARD.read_text())
    provisioning = prometheus.DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    panels = board["panels"]
    used = {each["datasource"]["uid"] for each in (*panels, *board["templating"]["list"]) if each["type"] != "row"}
    assert used == {source["uid"]}
    assert len({each["id"] for each in panels}) == len(panels)
    places = [(each["gridPos"]["x"], each["gridPos"]["y"]) for each in panels]
    assert len(set(places)) == len(places)


def answered(client: httpx.Client) -> list[dict[str, Any]]:
    """The rate of tokens, once every query of the dashboard has data and tokens were written."""
    queries = [query for each in prometheus.dashboard_queries().values() for query in each]
    limit = time.monotonic() + ANSWER_SECONDS
    while True:
        silent = [query for query in queries if not prometheus.ask(client, query)]
        rate = prometheus.ask(client, GENERATED)
        if not silent and any(float(each["value"][1]) > 0 for each in rate):
            return rate
        assert time.monotonic() < limit, f"without data: {silent}"
        time.sleep(1.0)


@pytest.mark.slow
def test_a_real_prometheus_answers_every_query_of_the_dashboard(home: Path, tmp_path: Path) -> None:
    settings = Settings.load()
    job_id = fill(settings.store_url, home)["live"]
    store = JobStore(settings.store_url)
    rules = prometheus.DEPLOY / "prometheus" / "rules.yml"
    subprocess.run([prometheus.program("promtool"), "check", "rules", str(rules)], check=True, capture_output=True)
    done = threading.Event()

    def work() -> None:
        beats = 40
        while not done.wait(1.0):
            beats += 8
            store.add_metrics(job_id, observed(job_id, beats))

    working = threading.Thread(target=work)
    with service(settings, store) as url, prometheus.server(url.removeprefix("http://"), tmp_path) as client:
        working.start()
        try:
            rate = answered(client)
            alerts = client.get("/api/v1/rules").json()["data"]["groups"][0]["rules"]
        finally:
            done.set()
            working.join(10)
    assert {each["metric"]["job"] for each in rate} == {job_id}, "the job of Sparring, not that of Prometheus"
    assert 0 < float(rate[0]["value"][1]) < 20, "eight a second were written, fewer on a busy machine"
    assert {each["health"] for each in alerts} == {"ok"} and len(alerts) == 6
