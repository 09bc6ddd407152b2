"""A service with its dashboard and a filled store, in a process of its own: NiceGUI is one for a whole process.

Run as a script with a folder and the number of a listening socket; it takes every job whose keys are right, and starts none. Prints the jobs' ids as JSON, then serves.
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import uvicorn
from dashboard_world import fill

from services.api.app import create_app
from services.jobs.load import parse_job
from services.jobs.store import JobStore
from services.settings import Settings


def main(home: Path, listening: socket.socket) -> None:
    settings = Settings(home=home, port=listening.getsockname()[1])
    print(json.dumps(fill(settings.store_url, home)), flush=True)
    app = create_app(settings, JobStore(settings.store_url), admit=parse_job, dashboard=True)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main(Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])))
