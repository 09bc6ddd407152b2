"""How fast the REST API answers under load: list, get and metrics, with many stored jobs and, where a job is named, beside it.

    .venv/bin/python benchmarks/api_latency.py --jobs 10000 --rate 50 --seconds 30
    .venv/bin/python benchmarks/api_latency.py --job job.yaml

It starts a service of its own (`sparring serve`, with Ray) on a home of its own, or on SPARRING_DATABASE_URL's empty database. Requests are
sent at fixed times, whether earlier ones were answered or not, and each one's latency counts from the time at which it was due, so that a
service that stalls shows. Requests alternate between the three kinds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table
from sqlalchemy import insert, select, text

from learner.errors import InputError
from services.client import Client
from services.jobs.database import open_engine
from services.jobs.load import load_job
from services.jobs.paths import resolve_paths
from services.jobs.spec import JobSpec
from services.jobs.state import JobState, RequestedAction
from services.jobs.store import JobStore
from services.jobs.tables import JobRow, LabelRow

SERIES, POINTS = 30, 600
"""Metrics of the job that is asked for its metrics."""

START_SECONDS = 300.0

Latencies = Mapping[str, list[float]]


def fill(url: str, home: Path, jobs: int) -> str:
    """Store jobs that have ended, with their labels, and the oldest of them with metrics; returns its id."""
    spec = JobSpec.model_validate(
        {
            "name": "stored",
            "policy": {"model": "a/model"},
            "prompts": {"source": "a/dataset"},
            "metadata": {"team": "a"},
        }
    )
    store = JobStore(url)
    first = store.create(spec, home=home, runner="command").id
    store.request(first, RequestedAction.CANCEL)
    for step in range(POINTS):
        store.add_metrics(first, {f"metric_{name}": step / (name + 1) for name in range(SERIES)}, learner_step=step)
    store.close()
    # the others are its copies, in one transaction: one after the other each would wait for the disk
    engine = open_engine(url)
    with engine.execution_options(writes=True).begin() as connection:
        row = dict(connection.execute(select(JobRow.__table__)).mappings().one())
        numbers = range(row["number"] + 1, row["number"] + jobs)
        connection.execute(
            insert(JobRow), [row | {"number": number, "id": f"stored-{number:06d}"} for number in numbers]
        )
        connection.execute(
            insert(LabelRow), [{"name": "team", "value": "a", "job_number": number} for number in numbers]
        )
        if connection.dialect.name == "postgresql":  # whose counter did not see the numbers
            connection.execute(text("SELECT setval('jobs_number_seq', (SELECT max(number) FROM jobs))"))
    engine.dispose()
    return first


@contextmanager
def serving(home: Path, log: Path) -> Iterator[str]:
    """A service on a free port; gives its address.

    Raises:
        SystemExit: it did not start.
    """
    command = [str(Path(sys.executable).parent / "sparring"), "serve", "--port", "0"]
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            env={
                **os.environ,
                "SPARRING_HOME": str(home),
                "SPARRING_RATE_LIMIT": "100000/second",
                "PYTHONUNBUFFERED": "1",
            },
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        limit = time.monotonic() + START_SECONDS
        while (found := re.search(r"answers at (http://\S+)", log.read_text())) is None:
            if process.poll() is not None or time.monotonic() > limit:
                raise SystemExit(f"the service did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
        yield found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


async def measure(url: str, job_id: str, rate: float, seconds: float) -> Latencies:
    """Seconds that each request took, by kind.

    Raises:
        SystemExit: a request was refused.
    """
    requests = {
        "list": ("/v1/jobs", {"limit": 50}),
        "get": (f"/v1/jobs/{job_id}", {}),
        "metrics": (f"/v1/jobs/{job_id}/metrics", {"name": "metric_0"}),
    }
    taken: dict[str, list[float]] = {kind: [] for kind in requests}

    async def ask(http: httpx.AsyncClient, kind: str, due: float) -> None:
        address, params = requests[kind]
        answer = await http.get(address, params=params)
        if answer.is_error:
            raise SystemExit(f"{kind} was refused: {answer.text}")
        taken[kind].append(time.perf_counter() - due)

    limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:
        for kind in requests:
            await ask(http, kind, time.perf_counter())
            taken[kind].clear()
        began = time.perf_counter()
        kinds, waiting = list(requests), []
        for place in range(int(rate * seconds)):
            due = began + place / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            waiting.append(asyncio.ensure_future(ask(http, kinds[place % len(kinds)], due)))
        await asyncio.gather(*waiting)
    return taken


def start(client: Client, file: Path) -> str:
    """Start a job and wait until it runs; returns its id.

    Raises:
        SystemExit: it ended before.
    """
    try:
        spec = resolve_paths(load_job(file), file.resolve().parent)
        job = client.submit(spec.model_dump(mode="json"))
    except InputError as error:
        raise SystemExit(str(error)) from None
    while (now := client.get(job.id)).state is not JobState.RUNNING:
        if now.state.terminal:
            raise SystemExit(f"{job.id} {now.state} before it ran: {now.error.message if now.error else ''}")
        time.sleep(0.5)
    return job.id


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000, help="stored jobs")
    parser.add_argument("--rate", type=float, default=50.0, help="requests each second")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long they are sent")
    parser.add_argument("--job", type=Path, help="a job file: measure once more while that job runs")
    arguments = parser.parse_args()

    measured: dict[str, Latencies] = {}
    with tempfile.TemporaryDirectory(prefix="sparring-api-") as folder:
        home = Path(folder)
        url = os.environ.get("SPARRING_DATABASE_URL") or f"sqlite:///{home / 'sparring.sqlite'}"
        began = time.monotonic()
        job_id = fill(url, home, arguments.jobs)
        print(f"{arguments.jobs} jobs stored in {time.monotonic() - began:.0f} s", file=sys.stderr)
        with serving(home, home / "serve.log") as url:
            measured["no job runs"] = asyncio.run(measure(url, job_id, arguments.rate, arguments.seconds))
            if arguments.job is not None:
                with Client(url) as client:
                    running = start(client, arguments.job)
                    beside = asyncio.run(measure(url, job_id, arguments.rate, arguments.seconds))
                    if client.get(running).state.terminal:
                        print(f"{running} ended while it was measured; give it more rounds", file=sys.stderr)
                    else:
                        client.cancel(running)
                    measured["a job runs"] = beside
    show(measured, arguments.jobs, arguments.rate)


def show(measured: Mapping[str, Latencies], jobs: int, rate: float) -> None:
    """Print the table."""
    table = Table(title=f"Latency at {rate:g} requests/s with {jobs} stored jobs (milliseconds)")
    for heading in ("", "request", "requests", "p50", "p99", "longest"):
        table.add_column(heading, justify="left" if heading in ("", "request") else "right")
    for when, latencies in measured.items():
        for kind, seconds in latencies.items():
            values = [f"{value * 1000:.1f}" for value in (*np.percentile(seconds, [50, 99]), max(seconds))]
            table.add_row(when, kind, str(len(seconds)), *values)
    Console().print(table)


if __name__ == "__main__":
    main()
