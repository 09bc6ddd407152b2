"""Several learner ranks give one rank's adapter (rule 12); a rank that is lost ends the step with one sentence."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from typing import Any

import pytest
import torch
from safetensors.torch import load

from learner.distributed import DistributedRanks, find_store, interface_of, open_store
from learner.errors import InputError
from learner.ranks import RankLost, Ranks
from learner.trainer import Trainer
from tests.learner.builders import answer, bradley_terry, group, random_groups, tiny_model, trainer_config
from tests.learner.rank_threads import ThreadRanks, on_ranks

SMALL_MODEL: dict[str, dict[str, Any]] = {"sppo": {"beta": 0.05}, "ipo": {"tau": 0.25}, "mallows": {"beta": 0.5}}
KINDS = ["sppo", "ipo", "s-dpo", "alpha-dpo", "beta-dpo", "dr-dpo", "kto-pair", "bco", "tdpo", "mallows", "wpo"]
"""Of every way that examples of a batch depend on each other, and on the vocabulary."""

CHASE = {"adapters": {"rank": 4, "alpha": 8, "slow": "chase", "swap_interval": 2}}
CASES: dict[str, dict[str, Any]] = {
    **{kind: {"objective": {"kind": kind, **SMALL_MODEL.get(kind, {})}} for kind in KINDS},
    "all pairs": {"objective": {"kind": "dpo"}, "pairing": {"rule": "all-pairs"}},
    "drawn pairs": {"objective": {"kind": "dpo"}, "pairing": {"rule": "did"}},
    "fast and slow": {"objective": {"kind": "chase", "inner": {"kind": "beta-dpo"}}, **CHASE},
    "average": {"objective": {"kind": "dpo"}, "adapters": {"rank": 4, "alpha": 8, "slow": "average"}},
}
"""Objectives, and what else says how a batch is learned."""

IN_PROCESSES = ["sppo", "beta-dpo", "dr-dpo", "kto-pair", "bco", "fast and slow"]

SLOW = {"learning_rate": 2e-5, "schedule": "constant", "warmup_ratio": 0}
"""AdamW moves a weight by this much whatever its gradient is, also where that is all rounding."""

BUILDING = threading.Lock()
"""Initial weights are drawn from the process's one random state."""

Found = tuple[dict[str, torch.Tensor], dict[str, float]]


def learn(case: str, ranks: Ranks | None = None) -> Found:
    """Two rounds of two steps, the last on fewer groups than there may be ranks; the adapter, and the metrics of the last step."""
    published: dict[tuple[str, int], Any] = {}
    with BUILDING:
        trainer = Trainer(
            trainer_config(optimizer=SLOW, **CASES[case]),
            lambda module, version: published[module, version],
            tiny_model(),
            ranks,
        )
    for number in (1, 2):
        snapshot = trainer.snapshot(number - 1)
        published["fast", number - 1] = snapshot.files
        if snapshot.slow is not None:
            published["slow", number - 1] = snapshot.slow.files
        trainer.begin_version(number, number - 1)
        groups = random_groups(9, seed=number, version=number - 1, round=number)
        trainer.step(groups[:7], number - 1)
        report = trainer.step(groups[7:], number - 1)
    return load(trainer.snapshot(2).files["adapter_model.safetensors"]), report.metrics


def assert_same(found: Found, expected: Found) -> None:
    assert found[1] == pytest.approx(expected[1], rel=1e-3, abs=1e-4)
    for name, weights in expected[0].items():
        torch.testing.assert_close(found[0][name], weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_three_ranks_give_the_adapter_of_one(case: str) -> None:
    alone = learn(case)
    assert any(weights.abs().max() > 1e-5 for name, weights in alone[0].items() if "lora_B" in name)
    of_ranks = on_ranks(3, lambda ranks: learn(case, ranks))
    assert_same(of_ranks[0], alone)
    for other in of_ranks[1:]:
        assert other[1] == of_ranks[0][1]
        assert all(torch.equal(other[0][name], weights) for name, weights in of_ranks[0][0].items())


@pytest.mark.parametrize("reducer", ["median", "flag"])
def test_robust_reducers_keep_learning_while_a_rank_sends_its_gradient_times_a_hundred_backwards(reducer: str) -> None:
    class Wrong(ThreadRanks):
        """A rank that sends something else than its gradient."""

        def combine(self, vector: torch.Tensor, rule: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
            return super().combine(-100 * vector, rule)

    def train(ranks: ThreadRanks) -> list[float]:
        if ranks.rank == 3:
            ranks.__class__ = Wrong
        learner = {"device": "cpu", "micro_batch_tokens": 128, "ranks": 5, "gradient_reducer": reducer}
        with BUILDING:
            trainer = Trainer(
                trainer_config(objective={"kind": "dpo"}, learner=learner), lambda *_: {}, tiny_model(), ranks
            )
        trainer.begin_version(1, 0)
        return [trainer.step(random_groups(10), 0).metrics["margin"] for _ in range(12)]

    margins = on_ranks(5, train)[0]
    assert margins[-1] > margins[0] + 0.5


# ---- processes ----------------------------------------------------------------------------------------------------

PROCESSES = multiprocessing.get_context("spawn")

PATIENCE_SECONDS = 180.0
"""Longest wait for another process, which imports torch on a machine that may be busy."""


def joined(rank: int, size: int, port: Any, seconds: float) -> DistributedRanks:
    """A rank of a new group on this machine; rank 0 opens the store and tells the others its port."""
    if rank == 0:
        store = open_store("127.0.0.1", size, seconds)
        for _ in range(size - 1):
            port.put(store.port)
    else:
        store = find_store("127.0.0.1", port.get(), size, seconds)
    return DistributedRanks(
        store, rank, size, address="127.0.0.1", device=torch.device("cpu"), backend="gloo", timeout_seconds=seconds
    )


def learn_in_a_process(rank: int, size: int, port: Any, results: Any) -> None:
    torch.set_num_threads(1)
    ranks = joined(rank, size, port, PATIENCE_SECONDS)
    for case in IN_PROCESSES:
        weights, metrics = learn(case, ranks)
        results.put((rank, case, {name: value.tolist() for name, value in weights.items()}, metrics))
    ranks.leave()


@contextmanager
def processes(size: int, work: Callable[..., None]) -> Iterator[Queue[Any]]:
    """So many processes at ``work(rank, size, port, results)``; what they put into their results."""
    port, results = PROCESSES.Queue(), PROCESSES.Queue()
    started = [PROCESSES.Process(target=work, args=(rank, size, port, results)) for rank in range(size)]
    for process in started:
        process.start()
    try:
        yield results
        for process in started:
            process.join(PATIENCE_SECONDS)
    finally:
        for process in started:
            process.kill()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_give_the_adapter_of_one() -> None:
    with processes(2, learn_in_a_process) as results:
        found: dict[str, dict[int, Found]] = {}
        for _ in range(2 * len(IN_PROCESSES)):
            rank, case, weights, metrics = results.get(timeout=240)
            found.setdefault(case, {})[rank] = ({n: torch.tensor(v) for n, v in weights.items()}, metrics)
    for case, of_ranks in found.items():
        assert_same(of_ranks[0], learn(case))
        assert of_ranks[1][1] == of_ranks[0][1]
        assert all(torch.equal(of_ranks[1][0][name], weights) for name, weights in of_ranks[0][0].items())


TIMEOUT_SECONDS = 10.0
"""Of the group in which a rank falls silent."""


def lose_ranks(three: Barrier, two: Barrier, rank: int, size: int, port: Any, results: Any) -> None:
    """Rank 0 of three outlives three groups: in one rank 2 dies, in the next rank 1 fails, in the last rank 1 says nothing.

    They wait for each other at the barriers, so that nobody is lost before the others have met it.
    """
    torch.set_num_threads(1)
    everybody = joined(rank, 3, port, PATIENCE_SECONDS)
    everybody.gather(rank)
    three.wait(PATIENCE_SECONDS)
    if rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    lost(everybody, results)

    both = joined(rank, 2, port, PATIENCE_SECONDS)
    two.wait(PATIENCE_SECONDS)
    if rank == 1:
        both.leave()  # as a rank does whose step fails
    else:
        lost(both, results)

    both = joined(rank, 2, port, TIMEOUT_SECONDS)
    two.wait(PATIENCE_SECONDS)
    if rank == 1:
        two.wait(PATIENCE_SECONDS)  # silent until rank 0 has given it up
        both.leave()
    else:
        lost(both, results)
        two.wait(PATIENCE_SECONDS)

    last = joined(rank, 2, port, PATIENCE_SECONDS)
    found = last.combine(torch.full((3,), float(rank + 1)), lambda vectors: vectors.sum(0))
    results.put((rank, 0.0, str(found.tolist())))
    two.wait(PATIENCE_SECONDS)
    last.leave()


def lost(ranks: DistributedRanks, results: Any) -> None:
    began = time.monotonic()
    try:
        ranks.sum(torch.ones(100_000))
    except RankLost as error:
        results.put((ranks.rank, time.monotonic() - began, str(error)))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_lost_rank_ends_the_others_step_with_one_sentence_and_they_can_meet_again() -> None:
    with processes(3, partial(lose_ranks, PROCESSES.Barrier(3), PROCESSES.Barrier(2))) as results:
        told = [results.get(timeout=240) for _ in range(6)]
    of_rank_0 = [(seconds, text) for rank, seconds, text in told if rank == 0]
    dead, failed, silent, again = of_rank_0
    for seconds, text in (dead, failed):
        assert text.startswith("learner rank 0 of ") and "lost another rank while they added up the gradients" in text
        assert "\n" not in text and ".cc" not in text
        assert seconds < PATIENCE_SECONDS / 2, "long before the time-out"
    seconds, text = silent
    assert "(longest wait 10 s, resources.learner.rank_timeout_seconds)" in text
    assert TIMEOUT_SECONDS - 1 < seconds < PATIENCE_SECONDS / 2
    assert again[1] == "[3.0, 3.0, 3.0]"
    assert next(text for rank, _, text in told if rank == 1).startswith("learner rank 1 of 3 lost another rank")


def test_a_rank_finds_the_interface_of_its_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.77") is None


def test_a_group_without_a_version_is_refused_by_the_rank_that_learns_it() -> None:
    outside = [group([answer([4, 5 + i], None), answer([6], None)], bradley_terry([1, 0]), i) for i in range(2)]
    behaviour = trainer_config(objective={"kind": "dpo", "reference": "behaviour"})

    def step(ranks: ThreadRanks) -> None:
        with BUILDING:
            trainer = Trainer(behaviour, lambda *_: {}, tiny_model(), ranks)
        trainer.step(outside, 0)

    with pytest.raises(InputError, match="carry no version"):
        on_ranks(2, step)


def test_with_nccl_a_lost_rank_is_an_error_and_not_the_end_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("TORCH_NCCL_BLOCKING_WAIT", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(variable, "")  # so that it is put back
        monkeypatch.delenv(variable)
    seen: list[str | None] = []

    def begin(*_: Any, **__: Any) -> None:
        seen.append(os.environ.get("TORCH_NCCL_BLOCKING_WAIT"))

    monkeypatch.setattr("learner.distributed.dist.init_process_group", begin)
    for backend in ("gloo", "nccl"):
        DistributedRanks(
            open_store("127.0.0.1", 1, 5.0), 0, 1, address="127.0.0.1", device=torch.device("cpu"), backend=backend, timeout_seconds=5.0
        )  # fmt: skip
    assert seen == [None, "1"]
