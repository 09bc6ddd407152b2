"""Whether the ports that Sparring listens on are free."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

from services.doctor.findings import Finding, Status

RAY_HEAD_PORT = 6379
PROBE_SECONDS = 2.0


def check_ports(host: str, api_host: str, api_port: int, *, ray_port: int | None = RAY_HEAD_PORT) -> Iterator[Finding]:
    """The REST API's port, and the one that ``ray start --head`` takes (None: not asked for).

    Args:
        host: this machine's name, for the findings.
        api_host: where the service is to listen.
        api_port: its port; 0 takes a free one.
        ray_port: of a Ray head on this machine.
    """
    if api_port:
        yield _api(host, api_host, api_port)
    if ray_port is not None:
        taken = listens("127.0.0.1", ray_port)
        yield Finding(
            host=host,
            subject="port of Ray",
            status=Status.WARNING if taken else Status.OK,
            found=f"{ray_port} is {'taken' if taken else 'free'}",
            advice=f"if a Ray head runs here, look at it with --address 127.0.0.1:{ray_port}; else start one with another --port"
            if taken
            else "",
        )


def listens(address: str, port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        socket.create_connection((address, port), timeout=PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def _api(host: str, api_host: str, api_port: int) -> Finding:
    here = {"host": host, "subject": "port of the API"}
    reached = "127.0.0.1" if api_host in ("", "0.0.0.0", "::") else api_host
    if not listens(reached, api_port):
        return Finding(**here, status=Status.OK, found=f"{api_port} is free")
    if _is_sparring(f"http://{f'[{reached}]' if ':' in reached else reached}:{api_port}/healthz"):
        return Finding(**here, status=Status.OK, found=f"Sparring answers at {api_port}")
    return Finding(
        **here,
        status=Status.PROBLEM,
        found=f"{api_port} is taken by another program",
        advice="set SPARRING_PORT to a free port, or end that program",
    )


def _is_sparring(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=PROBE_SECONDS) as answer:
            return b'"sparring"' in answer.read(1000)
    except (OSError, urllib.error.URLError, ValueError):
        return False
