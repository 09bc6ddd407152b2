"""Ray, and the module that knows its quirks (rule 17): starting it, naming actors, calling them, and what its errors mean.

Workers are named, detached actors in one namespace, so that a restarted controller finds them by name; each holds a lease and exits when
it lapses (rule 10). Every call has a time-out whose error names the setting to change (rule 9).
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray import exceptions as ray_errors
from ray.util.placement_group import get_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from tenacity import retry, retry_if_exception, stop_after_attempt

from learner.errors import InputError
from workers.capacity import Demand, Node, check_capacity, share
from workers.errors import CallTimeout, WorkerDied, WorkerError, WorkerUnavailable
from workers.roles import SHARE, Role, carried, offered, resource

__all__ = [
    "CallTimeout",
    "Demand",
    "Link",
    "Node",
    "WorkerDied",
    "WorkerError",
    "WorkerUnavailable",
    "call",
    "call_async",
    "check_capacity",
    "connect",
    "disconnect",
    "find",
    "free",
    "kill",
    "leave",
    "node_address",
    "nodes",
    "spawn",
]

NAMESPACE = "sparring"

CALL_TIMEOUT_VARIABLE = "SPARRING_CALL_TIMEOUT_SECONDS"
DEFAULT_CALL_TIMEOUT_SECONDS = 300.0
"""Longest wait for a call that has no setting of its own."""

OBJECT_STORE_BYTES = 256 << 20
"""Of a local Ray: versions and groups pass through it, nothing stays. What does not fit spills to disk."""

START_TRIES = 3
"""Ray gives its own helpers some 15 seconds to start, whatever the machine is busy with; a second try finds their files in memory."""

DEATH_NEWS_MILLISECONDS = 10_000
"""Longest wait of a call whose worker does not answer for the news that it has died."""

LONGEST_TEMP_DIR = 38
"""Ray makes Unix sockets some 65 characters below its folder, and a socket's path has at most 107."""

LEASE_GROUP = "lease"
"""Renewals have a thread of their own in the actor: a long step must not look like a silent controller."""

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)

NO_CARD_UNASKED = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
"""Ray leaves every card in sight of an actor that asked for none. A controller's own CUDA_VISIBLE_DEVICES would be handed on to the actors that it
starts; this may be."""

QUIET_THREADS = {"TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE"}
"""OpenMP threads that spin while they wait would take the core from the worker that could use it."""

ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds the packages."""


def connect(
    address: str | None,
    *,
    cpus: int | None = None,
    namespace: str = NAMESPACE,
    home: Path,
    object_store_bytes: int = OBJECT_STORE_BYTES,
) -> None:
    """Connect this process to a Ray cluster, or start a local one that ends with this process. Connected already: does nothing.

    Args:
        address: of a running cluster; None starts a local one.
        cpus: CPU shares of a local one. Default: as many as the machine has.
        namespace: where actors are named.
        home: Sparring's folder; a local Ray writes its session below it, where the path is short enough for its sockets.
        object_store_bytes: memory of a local one's object store.

    Raises:
        InputError: there is no cluster at the address, it asks for another token, or a local one did not start.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    common: dict[str, Any] = {"namespace": namespace, "log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        try:
            ray.init(address=address, **common)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                f"no Ray cluster answers at {address} (SPARRING_RAY_ADDRESS): {error}; start one with `ray start --head`, "
                "or leave the address out to run locally"
            ) from error
        except ray_errors.AuthenticationError as error:
            raise InputError(
                f"the Ray cluster at {address} (SPARRING_RAY_ADDRESS) asks for its token; set RAY_AUTH_MODE=token, and put the token of the "
                "head's ~/.ray/auth_token into a file that RAY_AUTH_TOKEN_PATH names"
            ) from error
        return
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    _start_local(
        num_cpus=cpus,
        resources=offered(),
        object_store_memory=object_store_bytes,
        runtime_env={"env_vars": {"PYTHONPATH": python_path}},
        _temp_dir=str(_temp_dir(home)),
        **common,
    )


def _too_slow(error: BaseException) -> bool:
    """Whether a local Ray was given up because its helpers took too long. It has no type of its own for that."""
    return "timed out during startup" in str(error)


@retry(
    retry=retry_if_exception(_too_slow),
    stop=stop_after_attempt(START_TRIES),
    before_sleep=lambda _: ray.shutdown(),
    retry_error_callback=lambda state: _refuse_start(state.attempt_number),
)
def _start_local(**options: Any) -> None:
    ray.init(
        address="local",
        include_dashboard=False,
        _system_config={
            # each of our actors has an environment of its own, and so a fresh process: idle ones would be started for nothing
            "prestart_worker_first_driver": False,
            # news of a death that comes late on a busy machine must not make the dead look as if they were out of reach
            "timeout_ms_task_wait_for_death_info": DEATH_NEWS_MILLISECONDS,
        },
        **options,
    )


def _refuse_start(tries: int) -> None:
    ray.shutdown()
    raise InputError(f"a local Ray did not start in {tries} tries: this machine is too busy; try again when it is not")


def disconnect() -> None:
    """Leave the cluster; a local one ends, with all its workers."""
    ray.shutdown()


def nodes() -> list[Node]:
    """What the cluster's living machines have in all, in use or not."""
    return [_node(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def free() -> list[Node]:
    """What the cluster's living machines have left now."""
    from ray._private import state

    return [_node(left) for left in state.available_resources_per_node().values()]


def _node(resources: Mapping[str, float]) -> Node:
    return Node(cpus=resources.get("CPU", 0.0), gpus=resources.get("GPU", 0.0), roles=carried(resources))


def node_address() -> str:
    """The address of this machine as the others of the cluster reach it."""
    address: str = ray.util.get_node_ip_address()
    return address


def spawn(
    actor_class: type,
    name: str,
    *,
    cpus: float,
    gpus: float = 0.0,
    threads: int = 1,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    max_concurrency: int | None = None,
    env: Mapping[str, str] | None = None,
    role: Role | None = None,
    bundle: tuple[str, int] | None = None,
) -> Any:
    """Start a named, detached actor, or return the one that runs under this name already. Does not wait for it to start.

    Args:
        actor_class: its class, undecorated.
        name: unique in the namespace.
        cpus: Ray CPU share.
        gpus: Ray GPU share.
        threads: threads of OpenMP and its kin, set before the process starts; Ray would derive them from ``cpus``.
        args: of the constructor.
        kwargs: of the constructor.
        max_concurrency: calls that run at a time. Ray's default: 1, or 1000 for a class with async methods.
        env: more environment variables.
        role: place it on a machine that carries this role. Default: on any.
        bundle: place it into the bundle of this number of the reservation of this name, which must be there (`workers/reservations.py`). Default: where
            there is room.
    """
    variables = dict.fromkeys(THREAD_VARIABLES, str(threads)) | QUIET_THREADS | NO_CARD_UNASKED | dict(env or {})
    options: dict[str, Any] = {
        "name": name,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": share(cpus),
        "num_gpus": share(gpus),
        # restarts are the controller's to decide and to count; a call is never repeated behind its caller's back
        "max_restarts": 0,
        "max_task_retries": 0,
        "runtime_env": {"env_vars": variables},
    }
    if max_concurrency is not None:
        options["max_concurrency"] = max_concurrency
    if role is not None:
        options["resources"] = {resource(role): SHARE}
    if bundle is not None:
        group, number = bundle
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(get_placement_group(group), number)
    remote_class = ray.remote(concurrency_groups={LEASE_GROUP: 1})(actor_class)
    return remote_class.options(**options).remote(*args, **dict(kwargs or {}))


def find(name: str) -> Any | None:
    """The running actor of this name, or None.

    Raises:
        WorkerUnavailable: the cluster does not answer now.
    """
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None
    except ray_errors.RayError as error:
        raise WorkerUnavailable(f"the cluster cannot say who is {name}: {error}") from error


def kill(name: str, timeout_seconds: float = 30.0) -> None:
    """End an actor, and wait until its name is free. Nobody of that name: does nothing.

    Raises:
        CallTimeout: the name was still taken after ``timeout_seconds``.
    """
    limit = time.monotonic() + timeout_seconds
    while (handle := find(name)) is not None:
        ray.kill(handle, no_restart=True)
        if time.monotonic() > limit:
            raise CallTimeout(
                f"{name} did not end within {timeout_seconds:g} s; see resources.fleet.shutdown_timeout_seconds"
            )
        time.sleep(0.02)


def call(ref: Any, timeout_seconds: float, setting: str) -> Any:
    """Wait for a call's result, blocking.

    Args:
        ref: what ``actor.method.remote(...)`` returned.
        timeout_seconds: longest wait.
        setting: where a person changes that.

    Raises:
        CallTimeout: no answer in time. The call may still be carried out.
        WorkerDied: the worker is gone.
        WorkerUnavailable: it cannot be reached or placed now.
        Exception: what the worker itself raised, as its own type.
    """
    try:
        return ray.get(ref, timeout=timeout_seconds)
    except ray_errors.RayError as error:
        raise _translated(error, timeout_seconds, setting) from None


async def call_async(ref: Any, timeout_seconds: float, setting: str) -> Any:
    """:func:`call` for coroutines."""
    try:
        async with asyncio.timeout(
            timeout_seconds
        ):  # Python 3.11's wait_for drops a cancellation that comes with the result
            return await ref
    except ray_errors.RayError as error:
        raise _translated(error, timeout_seconds, setting) from None
    except TimeoutError:
        raise _timeout(timeout_seconds, setting) from None


def leave() -> None:
    """End this process's own actor, once the call that it is in has been answered."""
    ray.actor.exit_actor()


class Link:
    """Calls to the actor of a name, whichever process carries it now.

    It looks the actor up on the first call, and again after its death, so that it reaches the one that was started in its place.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._handle: Any | None = None

    async def call(
        self, method: str, *args: Any, timeout_seconds: float | None = None, setting: str | None = None, **kwargs: Any
    ) -> Any:
        """Call a method and wait for its result; errors are those of :func:`call`, and ``WorkerUnavailable`` when nobody has the name."""
        try:
            return await call_async(self.begin(method, *args, **kwargs), *_patience(timeout_seconds, setting))
        except (WorkerDied, WorkerUnavailable):
            self._handle = None
            raise

    def call_blocking(
        self, method: str, *args: Any, timeout_seconds: float | None = None, setting: str | None = None, **kwargs: Any
    ) -> Any:
        """:meth:`call` outside coroutines."""
        try:
            return call(self.begin(method, *args, **kwargs), *_patience(timeout_seconds, setting))
        except (WorkerDied, WorkerUnavailable):
            self._handle = None
            raise

    async def stream(
        self, method: str, *args: Any, timeout_seconds: float | None = None, setting: str | None = None
    ) -> AsyncGenerator[Any]:
        """Call a method that is an async generator, and give its items as they come; the time-out is of each. Closing it early ends the
        method where it stands. Errors are those of :meth:`call`."""
        patience = _patience(timeout_seconds, setting)
        items = self._method(method).options(num_returns="streaming").remote(*args)
        ended = False
        try:
            while True:
                try:
                    ref = await asyncio.wait_for(anext(items), patience[0])
                except StopAsyncIteration:
                    ended = True
                    return
                except TimeoutError:
                    raise _timeout(*patience) from None
                yield await call_async(ref, *patience)
        except WorkerDied:
            self._handle, ended = None, True
            raise
        except WorkerUnavailable:  # it may live, and write on for nobody
            self._handle = None
            raise
        finally:
            if not ended:
                with suppress(ray_errors.RayError):
                    ray.cancel(items)

    def begin(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Begin a call and return Ray's reference to its result, which can be handed to another worker unread."""
        return self._method(method).remote(*args, **kwargs)

    def _method(self, method: str) -> Any:
        if self._handle is None:
            self._handle = find(self.name)
        if self._handle is None:
            raise WorkerUnavailable(f"no worker of the name {self.name} is running")
        return getattr(self._handle, method)


def _patience(timeout_seconds: float | None, setting: str | None) -> tuple[float, str]:
    if timeout_seconds is not None:
        return timeout_seconds, setting or "the call's timeout_seconds"
    given = os.environ.get(CALL_TIMEOUT_VARIABLE)
    try:
        seconds = DEFAULT_CALL_TIMEOUT_SECONDS if given is None else float(given)
    except ValueError:
        raise InputError(f"{CALL_TIMEOUT_VARIABLE}: {given!r} is not a number of seconds") from None
    return seconds, f"the environment variable {CALL_TIMEOUT_VARIABLE}"


def _timeout(timeout_seconds: float, setting: str) -> CallTimeout:
    return CallTimeout(f"no answer within {timeout_seconds:g} s; raise {setting} if the work takes longer")


def _translated(error: Exception, timeout_seconds: float, setting: str) -> Exception:
    """Ray's error as one of ours, or as what the worker raised."""
    match error:
        case ray_errors.GetTimeoutError():
            return _timeout(timeout_seconds, setting)
        case ray_errors.RayTaskError():
            cause = error.cause
            if isinstance(cause, ray_errors.RayError):
                return _translated(cause, timeout_seconds, setting)
            if isinstance(cause, Exception):
                cause.add_note(f"raised in a worker:\n{error}")
                return cause
            return WorkerError(str(error))
        case (
            ray_errors.ActorUnavailableError()
            | ray_errors.ActorUnschedulableError()
            | ray_errors.TaskUnschedulableError()
        ):
            return WorkerUnavailable(str(error))
        case (
            ray_errors.RayActorError()
            | ray_errors.WorkerCrashedError()
            | ray_errors.NodeDiedError()
            | ray_errors.ObjectLostError()
            | ray_errors.OutOfMemoryError()
            | ray_errors.LocalRayletDiedError()
            | ray_errors.AsyncioActorExit()
        ):
            return WorkerDied(str(error))
        case _:
            return WorkerError(f"{type(error).__name__}: {error}")


def _temp_dir(home: Path) -> Path:
    """A folder for Ray's session: below ``home``, or where that is too deep, in the machine's temporary folder."""
    folder = home.absolute() / "ray"
    for candidate in (
        folder,
        Path(tempfile.gettempdir()) / f"sparring-{os.getuid()}",
        Path(f"/tmp/sparring-{os.getuid()}"),
    ):
        if len(str(candidate)) <= LONGEST_TEMP_DIR:
            folder = candidate
            break
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise InputError(f"{folder} belongs to another user; remove it, or set SPARRING_HOME to a shorter path")
    return folder
