"""Ranks in processes of their own, over torch.distributed: gloo on CPUs, nccl where every rank has a GPU to itself.

Only here is torch.distributed known. A process is in one group at a time; after a failure it leaves it, which closes its connections, so
that ranks that still wait for it fail at once instead of at their time-out.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from learner.ranks import RankLost

TIMEOUT_SETTING = "resources.learner.rank_timeout_seconds"

INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Which network interface the ranks talk over; set by a person, these are left as they are."""


def open_store(address: str, ranks: int, timeout_seconds: float) -> TCPStore:
    """Where the ranks of a new group find each other, on a free port of this machine. It lives as long as the object does.

    Args:
        address: this machine's, as the other ranks reach it.
        ranks: how many the group will have.
        timeout_seconds: longest wait for one of them.

    Raises:
        RankLost: nothing can listen at the address.
    """
    try:
        return TCPStore(
            address, 0, ranks, is_master=True, timeout=timedelta(seconds=timeout_seconds), wait_for_workers=False
        )
    except RuntimeError as error:
        raise RankLost(f"learner rank 0 cannot listen at {address} for the others: {_first_line(error)}") from error


def find_store(address: str, port: int, ranks: int, timeout_seconds: float) -> TCPStore:
    """The store that rank 0 opened.

    Raises:
        RankLost: it does not answer.
    """
    try:
        return TCPStore(address, port, ranks, is_master=False, timeout=timedelta(seconds=timeout_seconds))
    except RuntimeError as error:
        raise RankLost(f"rank 0 of the learner does not answer at {address}:{port}: {_first_line(error)}") from error


class DistributedRanks:
    """The ranks as torch.distributed's group of processes.

    Args:
        store: where they find each other.
        rank: this process's number.
        size: how many there are.
        address: of this machine, which says over which network interface the ranks talk.
        device: of the gradients.
        backend: `nccl` needs a GPU for each rank alone.
        timeout_seconds: longest wait for another rank.

    Raises:
        RankLost: not all of them came in time.
    """

    def __init__(
        self,
        store: TCPStore,
        rank: int,
        size: int,
        *,
        address: str,
        device: torch.device,
        backend: Literal["gloo", "nccl"],
        timeout_seconds: float,
    ) -> None:
        self.rank, self.size = rank, size
        # what is no gradient travels from where the backend can read it
        self._device = device if backend == "nccl" else torch.device("cpu")
        self._timeout_seconds = timeout_seconds
        interface = interface_of(address)
        for variable in INTERFACE_VARIABLES if interface is not None else ():
            os.environ.setdefault(variable, str(interface))
        if backend == "nccl":
            # otherwise torch's watchdog ends this process when another rank is lost, in place of an error that is told
            os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
        with self._others("waited for the others to come"):
            dist.init_process_group(
                backend,
                store=store,
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=timeout_seconds),
                device_id=device if backend == "nccl" else None,
            )

    def leave(self) -> None:
        """Close the connections to the others. Left already: does nothing."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def sum(self, vector: Tensor) -> None:
        """Replace a vector by its sum over ranks, in place; the same bits on every rank.

        Raises:
            RankLost: another rank is gone or silent.
        """
        with self._others("added up the gradients"):
            dist.all_reduce(vector)

    def combine(self, vector: Tensor, rule: Callable[[Tensor], Tensor]) -> Tensor:
        """What ``rule`` makes of all ranks' vectors, ``[size, n]`` to ``[n]``: computed on rank 0, the same bits on every rank.

        Raises:
            RankLost: another rank is gone or silent.
        """
        vectors = torch.empty(self.size, len(vector), dtype=vector.dtype, device=vector.device)
        with self._others("collected the gradients"):
            dist.gather(vector, list(vectors.unbind()) if self.rank == 0 else None)
        combined = rule(vectors) if self.rank == 0 else vector
        with self._others("handed out the combined gradient"):
            dist.broadcast(combined, src=0)
        return combined

    def gather(self, part: Any) -> list[Any]:
        """Every rank's part, in the order of ranks, on every rank: what JSON can hold, and numbers come back to the bit.

        Raises:
            RankLost: another rank is gone or silent.
        """
        written = torch.tensor(list(json.dumps(part).encode()), dtype=torch.uint8, device=self._device)
        with self._others("gathered what each found"):
            sizes = [torch.empty(1, dtype=torch.int64, device=self._device) for _ in range(self.size)]
            dist.all_gather(sizes, torch.tensor([len(written)], device=self._device))
            lengths = [int(size) for size in sizes]
            padded = torch.nn.functional.pad(written, (0, max(lengths) - len(written)))
            rows = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(rows, padded)
        return [json.loads(bytes(row[:length].tolist())) for row, length in zip(rows, lengths, strict=True)]

    @contextmanager
    def _others(self, what: str) -> Iterator[None]:
        """torch.distributed's error as one sentence."""
        try:
            yield
        except RuntimeError as error:
            self.leave()
            raise RankLost(
                f"learner rank {self.rank} of {self.size} lost another rank while they {what}: {_first_line(error)} (longest wait "
                f"{self._timeout_seconds:g} s, {TIMEOUT_SETTING})"
            ) from error


def interface_of(address: str) -> str | None:
    """The network interface that carries an address of this machine; None where none does."""
    interfaces: dict[str, list[Any]] = psutil.net_if_addrs()
    for name, entries in interfaces.items():
        if any(entry.family in (socket.AF_INET, socket.AF_INET6) and entry.address == address for entry in entries):
            return name
    return None


def _first_line(error: Exception) -> str:
    """What went wrong, without the places in torch's source that come before it and the stack that follows."""
    return str(error).split("\n")[0].rsplit("] ", 1)[-1].rstrip(". ")
