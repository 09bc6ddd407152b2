"""Gradient reducers while one of five learner ranks sends wrong gradients: win rates, and what each reducer costs in a step.

    .venv/bin/python benchmarks/robust_reducers.py
    .venv/bin/python benchmarks/robust_reducers.py --seeds 0 1 2 3 4 --steps 30

The learner alone, on the demo's policy (`learner_bench.py`), in the first domain: DPO on the start policy's answers to 16 prompts a step, shared by five ranks, which are
processes of their own over gloo. The last rank learns as the others do, but what it hands to the reducer is wrong from the first step to the last:

* random: noise instead of its gradient, a hundred times as long;
* sign-flipped: the gradient backwards;
* x100: the gradient a hundred times as long;
* sign-flipped x100: both.

Every cell of the table has the mean win rate over seeds with its 95 % t-interval. Costs are measured in one process on vectors as long as a LoRA
adapter's gradient: all reducers take turns, and each turn gives every reducer's time over the mean's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from learner_bench import PROMPTS_PER_STEP, TASTES, Bench, interval
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from transformers.utils import logging

from learner.aggregation import coordinate_median, flag_aggregate
from learner.config import TrainerConfig
from learner.distributed import DistributedRanks, find_store, open_store
from learner.records import ScoredGroup
from learner.seeds import derive_seed
from learner.trainer import Trainer
from services.demo.world import DemoWorld, ensure_world

RANKS = 5
REDUCERS = ("mean", "median", "flag")
RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda vectors: vectors.mean(dim=0),
    "median": coordinate_median,
    "flag": flag_aggregate,
}
PATIENCE_SECONDS = 1800.0
"""The other ranks wait while rank 0 writes answers."""


def noise(vector: Tensor) -> Tensor:
    """Nothing of the gradient, and a hundred times as long."""
    drawn = torch.randn(vector.shape, generator=torch.Generator().manual_seed(derive_seed(*vector[:8].tolist())))
    return 100 * vector.norm() * torch.nn.functional.normalize(drawn, dim=0)


ATTACKS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda vector: vector,
    "random": noise,
    "sign-flipped": lambda vector: -vector,
    "x100": lambda vector: 100 * vector,
    "sign-flipped x100": lambda vector: -100 * vector,
}


class WrongRank(DistributedRanks):
    """A rank that sends something else than its gradient."""

    attack: Callable[[Tensor], Tensor]

    def sum(self, vector: Tensor) -> None:
        """What the mean reducer calls."""
        vector.copy_(self.attack(vector))
        super().sum(vector)

    def combine(self, vector: Tensor, rule: Callable[[Tensor], Tensor]) -> Tensor:
        """What the others call."""
        return super().combine(self.attack(vector), rule)


def trainer_of(bench: Bench, reducer: str, ranks: DistributedRanks) -> Trainer:
    """One rank's trainer on a copy of the start policy."""
    config = {
        "job_id": "benchmark",
        "policy": {"model": str(bench.world.policy)},
        "adapters": {"rank": 8, "alpha": 16},
        "objective": {"kind": "dpo", "beta": 0.1},
        "optimizer": {"learning_rate": 2e-3, "schedule": "constant", "warmup_ratio": 0.05},
        "schedule": {
            "rounds": 1,
            "prompts_per_round": bench.steps * PROMPTS_PER_STEP,
            "prompts_per_step": PROMPTS_PER_STEP,
        },
        "learner": {"device": "cpu", "ranks": RANKS, "gradient_reducer": reducer},
        "seed": bench.seed,
    }
    return Trainer(TrainerConfig.model_validate(config), lambda module, version: {}, bench.model(), ranks)


def train(
    bench: Bench,
    batches: Sequence[Sequence[ScoredGroup]],
    reducer: str,
    ranks: DistributedRanks,
    tell: Callable[[], None],
) -> Trainer:
    """One arm, as one of the ranks."""
    trainer = trainer_of(bench, reducer, ranks)
    trainer.begin_version(0, 0)
    for batch in batches:
        trainer.step(batch, 0)
        tell()
    return trainer


def run_rank(rank: int, port: Any, results: Any, world: DemoWorld, arguments: argparse.Namespace) -> None:
    """Every arm, one after another, as one of the ranks."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    if rank == 0:
        store = open_store("127.0.0.1", RANKS, PATIENCE_SECONDS)
        for _ in range(RANKS - 1):
            port.put(store.port)
    else:
        store = find_store("127.0.0.1", port.get(), RANKS, PATIENCE_SECONDS)
    kind = WrongRank if rank == RANKS - 1 else DistributedRanks
    device = torch.device("cpu")
    ranks = kind(
        store, rank, RANKS, address="127.0.0.1", device=device, backend="gloo", timeout_seconds=PATIENCE_SECONDS
    )

    def tell() -> None:
        if rank == 0:
            results.put(None)

    domain = next(iter(TASTES))
    for seed in arguments.seeds:
        bench = Bench(world, "robust-reducers", seed, arguments.steps, arguments.held_out)
        first = trainer_of(bench, "mean", ranks)
        batches = [bench.play(first, [domain], step) for step in range(arguments.steps)]
        start = bench.answers(first, domain) if rank == 0 else []
        for reducer, attack in itertools.product(REDUCERS, ATTACKS):
            if isinstance(ranks, WrongRank):
                ranks.attack = ATTACKS[attack]
            trainer = train(bench, batches, reducer, ranks, tell)
            if rank == 0:
                results.put((reducer, attack, bench.win_rate(domain, bench.answers(trainer, domain), start)))
    ranks.leave()


def measure_costs(size: int, turns: int) -> dict[str, list[float]]:
    """Seconds of every reducer on five ranks' vectors, in turns."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(size, generator=generator) + torch.randn(RANKS, size, generator=generator)
    seconds: dict[str, list[float]] = {name: [] for name in RULES}
    for turn in range(turns + 1):
        for name, rule in RULES.items():
            began = time.perf_counter()
            rule(vectors)
            if turn > 0:  # the first turn warms up
                seconds[name].append(time.perf_counter() - began)
    return seconds


def show_costs(console: Console, seconds: dict[str, list[float]], size: int) -> None:
    """The table of costs."""
    table = Table(title=f"One reduction of {RANKS} vectors of {size:,} numbers, one thread")
    for name in ("reducer", "milliseconds (median)", "over the mean's (median, quartiles)"):
        table.add_column(name)
    for name, of_one in seconds.items():
        ratios = [own / mean for own, mean in zip(of_one, seconds["mean"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        table.add_row(name, f"{1000 * statistics.median(of_one):.1f}", f"{middle:.2f} ({low:.2f} to {high:.2f})")
    console.print(table)


def main() -> None:
    """Measure costs, run every arm for every seed, and show what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=16, help="optimizer steps")
    parser.add_argument("--held-out", type=int, default=80, help="prompts that win rates are measured on")
    parser.add_argument("--size", type=int, default=10_000_000, help="numbers of a gradient whose reduction is timed")
    parser.add_argument("--turns", type=int, default=20, help="times that each reducer is timed")
    parser.add_argument(
        "--home", type=Path, default=Path("~/.cache/sparring").expanduser(), help="where the demo's world is kept"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/robust_reducers"))
    arguments = parser.parse_args()
    console = Console(width=140)
    seconds = measure_costs(arguments.size, arguments.turns)
    show_costs(console, seconds, arguments.size)
    world = ensure_world(arguments.home, 0, lambda stage, done, total: None)
    processes = multiprocessing.get_context("spawn")
    port, results = processes.Queue(), processes.Queue()
    ranks = [
        processes.Process(target=run_rank, args=(rank, port, results, world, arguments), daemon=True)
        for rank in range(RANKS)
    ]
    for process in ranks:
        process.start()
    found: dict[str, dict[str, list[float]]] = {reducer: {attack: [] for attack in ATTACKS} for reducer in REDUCERS}
    arms = len(arguments.seeds) * len(REDUCERS) * len(ATTACKS)
    with Progress(console=console) as bars:
        task = bars.add_task("Steps", total=arms * arguments.steps)
        while arms:
            told = results.get(timeout=PATIENCE_SECONDS)
            if told is None:
                bars.advance(task)
            else:
                reducer, attack, win_rate = told
                found[reducer][attack].append(win_rate)
                arms -= 1
    for process in ranks:
        process.join()
    table = Table(title=f"Win rate after {arguments.steps} steps, one of {RANKS} ranks wrong")
    for name in ("", *ATTACKS):
        table.add_column(name)
    for reducer, of_reducer in found.items():
        table.add_row(reducer, *(interval(of_reducer[attack]) for attack in ATTACKS))
    console.print(table)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "figures.json").write_text(json.dumps({"win_rates": found, "seconds": seconds}, indent=1))
    console.print(f"Figures: {arguments.out}")


if __name__ == "__main__":
    main()
