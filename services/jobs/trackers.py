"""Trackers: a job's metrics and report go to TensorBoard, Weights & Biases or MLflow too.

Their packages are imported only where a job names them. A tracker runs in a thread of its own, behind a bounded queue: a slow server never
holds a job up, and one that fails costs the tracking and a warning, never the job.
"""

from __future__ import annotations

import importlib.util
import math
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from services.jobs.layout import JobPaths
from services.jobs.spec import JobSpec, TrackerName
from services.secrets import mask_json

WAITING = 10_000
"""Calls that wait for a slow tracker; beyond them, what is new is dropped and counted."""

CLOSE_SECONDS = 60.0
"""At a job's end, the time that a tracker has to send what waits."""

BEAT_SECONDS = 10.0
"""Between two values of a metric that belongs to no optimizer step, of which a heartbeat brings one each second."""

PROJECT = "sparring"

_UNTAKEN = re.compile(r"[^\w./ -]")


class Tracker(Protocol):
    """What keeps a run's curves. Calls come from one thread, in order."""

    def log(self, values: Mapping[str, float], step: int, seconds: float) -> None:
        """Numbers of an optimizer step, at a time in seconds since the epoch."""

    def keep(self, file: Path) -> None:
        """A file that belongs to the run, such as its report."""

    def close(self) -> None:
        """The run goes no further for now; a resumed job opens it again."""


class TensorBoard:
    """Event files in the job's folder: ``tensorboard --logdir …/jobs``. Written by TensorBoard's own package, without torch."""

    def __init__(self, folder: Path) -> None:
        writer = import_module("tensorboard.summary.writer.event_file_writer")
        self._event: Any = import_module("tensorboard.compat.proto.event_pb2").Event
        self._summary: Any = import_module("tensorboard.compat.proto.summary_pb2").Summary
        self._folder = folder
        self._writer: Any = writer.EventFileWriter(str(folder))

    def log(self, values: Mapping[str, float], step: int, seconds: float) -> None:
        """Each value as a scalar."""
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_event(self._event(wall_time=seconds, step=step, summary=self._summary(value=scalars)))
        self._writer.flush()

    def keep(self, file: Path) -> None:
        """A link beside the events: TensorBoard shows no files."""
        link = self._folder / file.name
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(file, self._folder))

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, set up by its own variables (``WANDB_API_KEY``, ``WANDB_PROJECT``, ``WANDB_MODE`` …)."""

    def __init__(self, job_id: str, folder: Path, spec: Mapping[str, Any]) -> None:
        wandb: Any = import_module("wandb")
        folder.mkdir(parents=True, exist_ok=True)
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._run: Any = wandb.init(
            project=project,
            id=job_id,
            name=job_id,
            resume="allow",
            dir=str(folder),
            config=dict(spec),
            save_code=False,
            settings=wandb.Settings(console="off"),
        )
        # over a metric and not wandb's own step, which never goes back, as a job does that goes back to a version
        self._run.define_metric("*", step_metric="learner_step")

    def log(self, values: Mapping[str, float], step: int, seconds: float) -> None:
        """The values, over the optimizer step."""
        self._run.log({**values, "learner_step": step, "_timestamp": seconds})

    def keep(self, file: Path) -> None:
        """A file of the run."""
        self._run.save(str(file), base_path=str(file.parent))

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


class MlFlow:
    """A run of MLflow, at ``MLFLOW_TRACKING_URI`` or in a file of the job's folder."""

    def __init__(self, job_id: str, folder: Path, spec: Mapping[str, Any]) -> None:
        mlflow: Any = import_module("mlflow")
        folder.mkdir(parents=True, exist_ok=True)
        self._metric: Any = import_module("mlflow.entities").Metric
        remote = os.environ.get("MLFLOW_TRACKING_URI")
        self._client: Any = mlflow.MlflowClient(remote or f"sqlite:///{folder / 'mlflow.sqlite'}")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        place = None if remote else (folder / "artefacts").as_uri()
        experiment = self._client.create_experiment(name, place) if found is None else found.experiment_id
        runs = self._client.search_runs([experiment], f"tags.`mlflow.runName` = '{job_id}'", max_results=1)
        self._run = (runs[0] if runs else self._client.create_run(experiment, run_name=job_id)).info.run_id
        self._client.update_run(self._run, status="RUNNING")
        for key in ("policy", "objective", "optimizer"):
            self._client.set_tag(self._run, f"sparring.{key}", str(spec[key]))

    def log(self, values: Mapping[str, float], step: int, seconds: float) -> None:
        """The values, over the optimizer step."""
        at = int(seconds * 1000)
        metrics = [self._metric(name, value, at, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def keep(self, file: Path) -> None:
        """An artefact of the run."""
        self._client.log_artifact(self._run, str(file))

    def close(self) -> None:
        """End the run; resuming the job opens it again."""
        self._client.set_terminated(self._run)


PACKAGES: Mapping[TrackerName, str] = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""The package that each needs."""


def problems(names: tuple[TrackerName, ...]) -> Iterator[str]:
    """Trackers that cannot be used here."""
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            yield f"output.trackers: {name} is named {names.count(name)} times; name it once"
        if importlib.util.find_spec(PACKAGES[name]) is None:
            yield (
                f"output.trackers: {name} needs a package that is not installed; install it on every machine with "
                f"`pip install {PACKAGES[name]}`, or leave {name} out"
            )


def open_tracker(name: TrackerName, job_id: str, spec: JobSpec, paths: JobPaths) -> Tracker:
    """A job's tracker; one that was opened before goes on."""
    folder, content = paths.root / name, mask_json(spec.model_dump(mode="json"))
    if name == "tensorboard":
        return TensorBoard(folder)
    return WeightsAndBiases(job_id, folder, content) if name == "wandb" else MlFlow(job_id, folder, content)


class Forwarder:
    """Forwards what a job writes down to one tracker, from a thread of its own.

    Args:
        name: of the tracker, for warnings.
        build: opens it; called in the thread.
        warn: told, once, that it fails or is too slow.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        name: str,
        build: Callable[[], Tracker],
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name, self._build, self._warn, self._clock = name, build, warn, clock
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(WAITING)
        self._step = 0
        self._told: dict[str, float] = {}
        self._dropped = 0
        self._failed = threading.Event()
        self._thread = threading.Thread(target=self._forward, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def metrics(self, values: Mapping[str, float], *, version: int | None, learner_step: int | None) -> None:
        """Numbers of this moment. What belongs to no optimizer step is shown at the newest, and each worker's own is left out."""
        now = self._clock()
        self._step = self._step if learner_step is None else learner_step
        chosen = {
            name: float(value)
            for name, value in values.items()
            if "{" not in name
            and math.isfinite(value)
            and (learner_step is not None or now - self._told.get(name, 0.0) >= BEAT_SECONDS)
        }
        if not chosen:
            return
        self._told |= dict.fromkeys(chosen, now)
        tidy = {_UNTAKEN.sub("_", name): value for name, value in chosen.items()}
        if version is not None:
            tidy["version"] = float(version)
        step = self._step
        self._hand_over(lambda tracker: tracker.log(tidy, step, now))

    def keep(self, file: Path) -> None:
        """A file that belongs to the run."""
        self._hand_over(lambda tracker: tracker.keep(file))

    def close(self) -> None:
        """Let the tracker finish what waits, for a while."""
        if not self._failed.is_set():
            with suppress(queue.Full):
                self._calls.put(None, timeout=CLOSE_SECONDS)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._warn(
                f"{self.name} took longer than {CLOSE_SECONDS:g} s to end; its last numbers may be missing there"
            )
        if self._dropped:
            self._warn(f"{self.name} was too slow: {self._dropped} calls were dropped; the job's own metrics have them")

    def _hand_over(self, call: Callable[[Tracker], None]) -> None:
        if self._failed.is_set():
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._dropped += 1

    def _forward(self) -> None:
        try:
            tracker = self._build()
            while (call := self._calls.get()) is not None:
                call(tracker)
            tracker.close()
        except Exception as error:  # a foreign server or library: whatever it is, the job goes on
            self._warn(f"{self.name} gets no more of this job: {type(error).__name__}: {error}")
            self._failed.set()
