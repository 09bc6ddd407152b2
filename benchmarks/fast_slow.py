"""Fast and slow adapters against one adapter, in one domain and over three that conflict in part (OFS-DPO and COFS-DPO, arXiv 2406.05534).

    .venv/bin/python benchmarks/fast_slow.py
    .venv/bin/python benchmarks/fast_slow.py --seeds 0 1 2 3 4 --steps 60

The learner alone, on the demo's policy (`learner_bench.py`). Every domain wants right answers; beyond that one wants courtesies, one few words and
one many. All arms get the same prompts in the same order, answer them as they have become, and make the same number of steps.

* One domain: DPO, and OFS-DPO, whose slow adapter learns at 0.3 of the rate; every few steps the one whose loss was lower becomes the fast one. Steps
  to a win rate, the last win rate, the gradient late on.
* Three domains in sequence: DPO with one adapter, OFS-DPO with one pair of them, COFS-DPO with fresh ones on the frozen combination, and DPO on all
  domains mixed, which has what the others have not: all domains at once.

Tables have means over seeds with 95 % t-intervals. The figures of every arm of a seed are written under ``--out`` when it is done, and one that is
there already with the same settings is read and not run again: seeds may run side by side. The picture is written beside them.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from learner_bench import PROMPTS_PER_STEP, TASTES, Bench, interval
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers.utils import logging

from learner.config import TrainerConfig
from learner.trainer import Trainer
from learner.transfer import TransferMatrix
from services.demo.world import ensure_world

ONE_DOMAIN: dict[str, dict[str, Any]] = {"DPO": {}, "OFS-DPO": {"slow": "chase"}}

SEQUENCES: dict[str, dict[str, Any]] = {
    "DPO in sequence": {},
    "OFS-DPO in sequence": {"slow": "chase"},
    "COFS-DPO": {"slow": "chase", "combine": "cofs"},
    "DPO, domains mixed": {"mixed": True},
}


def build_trainer(
    bench: Bench,
    swap_interval: int,
    *,
    slow: str = "off",
    combine: str = "none",
    domains: bool = False,
    store: Any = None,
) -> Trainer:
    """A trainer on a copy of the start policy."""
    objective: dict[str, Any] = {"kind": "dpo", "beta": 0.1}
    config = {
        "job_id": "benchmark",
        "policy": {"model": str(bench.world.policy)},
        "adapters": {"rank": 8, "alpha": 16, "slow": slow, "swap_interval": swap_interval},
        "objective": objective if slow == "off" else {"kind": "chase", "inner": objective, "alpha": 0.1},
        "optimizer": {"learning_rate": 2e-3, "schedule": "constant", "warmup_ratio": 0.05, "span": "domain"},
        "schedule": {
            "rounds": 1,
            "prompts_per_round": bench.steps * PROMPTS_PER_STEP,
            "prompts_per_step": PROMPTS_PER_STEP,
            "domains": list(TASTES) if domains else None,
            "combine": combine,
        },
        "learner": {"device": "cpu", "threads": 2},
        "seed": bench.seed,
    }
    fetch = (lambda module, version: store[module, version]) if store is not None else (lambda module, version: {})
    return Trainer(TrainerConfig.model_validate(config), fetch, base=bench.model())


def one_domain(bench: Bench, swap_interval: int, tell: Callable[[], None], slow: str = "off") -> dict[str, Any]:
    """Train in the first domain, and measure the win rate as it goes."""
    domain = next(iter(TASTES))
    trainer = build_trainer(bench, swap_interval, slow=slow)
    trainer.begin_version(0, 0)
    start = bench.answers(trainer, domain)
    every = max(1, bench.steps // 8)
    curve, norms, swaps = [(0, 0.5)], [], 0.0
    for number in range(1, bench.steps + 1):
        metrics = trainer.step(bench.play(trainer, [domain], number), 0).metrics
        norms.append(metrics["gradient_norm"])
        swaps = metrics.get("role_swaps", 0.0)
        if number % every == 0 or number == bench.steps:
            curve.append((number, bench.win_rate(domain, bench.answers(trainer, domain), start)))
        tell()
    late = norms[-max(1, len(norms) // 4) :]
    return {"curve": curve, "gradient_norms": norms, "late_gradient_norm": statistics.fmean(late), "swaps": swaps}


def sequence(
    bench: Bench,
    swap_interval: int,
    tell: Callable[[], None],
    slow: str = "off",
    combine: str = "none",
    mixed: bool = False,
) -> dict[str, Any]:
    """Train over the domains; the win rate in every domain after each."""
    domains = list(TASTES)
    store: dict[tuple[str, int], Mapping[str, bytes]] = {}
    trainer = build_trainer(bench, swap_interval, slow=slow, combine=combine, domains=not mixed, store=store)
    trainer.begin_version(0, 0)
    starts = {domain: bench.answers(trainer, domain) for domain in domains}
    stages = [(None, domains)] * len(domains) if mixed else [(domain, [domain]) for domain in domains]
    rows: list[list[float]] = [[0.5] * len(domains)]
    weights: dict[str, float] = {}
    version, swaps = 0, 0.0

    def publish() -> None:
        snapshot = trainer.snapshot(version)
        store["fast", version] = snapshot.files
        if snapshot.slow is not None:
            store["slow", version] = snapshot.slow.files

    publish()
    for number, (domain, asked) in enumerate(stages):
        trainer.begin_version(version, version, domain)
        for step in range(bench.steps):
            groups = bench.play(trainer, asked, number * bench.steps + step)
            swaps = trainer.step(groups, version).metrics.get("role_swaps", 0.0)
            tell()
        version += 1
        publish()
        if combine != "none" and number > 0:
            weights = trainer.combine()
            version += 1
            publish()
        rows.append([bench.win_rate(d, bench.answers(trainer, d), starts[d]) for d in domains])
    matrix = TransferMatrix(tuple(domains), tuple(tuple(row) for row in rows))
    measured = {"average": matrix.average(), "forgetting": matrix.forgetting(), "backward": matrix.backward_transfer()}
    return {"rows": rows, **measured, "weights": weights, "swaps": swaps}


def steps_to(curve: Sequence[tuple[int, float]], target: float) -> float:
    """The first measured step at which the win rate is reached; infinity where it never is."""
    return next((float(step) for step, rate in curve if rate >= target), math.inf)


def swaps_by_seed(of_arm: Sequence[dict[str, Any]]) -> str:
    """How often the adapters of each seed changed places."""
    return ", ".join(f"{run['swaps']:.0f}" for run in of_arm)


def show_one_domain(console: Console, runs: dict[str, list[dict[str, Any]]], target: float) -> None:
    """The table of one domain."""
    table = Table(title=f"One domain ({next(iter(TASTES))}), equal steps")
    for name in ("", f"steps to {target:.0%}", "win rate at the end", "gradient norm, last quarter", "role swaps"):
        table.add_column(name)
    for name, of_arm in runs.items():
        reached = [steps_to(run["curve"], target) for run in of_arm]
        table.add_row(
            name,
            ", ".join("never" if math.isinf(step) else f"{step:.0f}" for step in reached),
            interval([run["curve"][-1][1] for run in of_arm]),
            interval([run["late_gradient_norm"] for run in of_arm]),
            swaps_by_seed(of_arm),
        )
    console.print(table)


def show_sequences(console: Console, runs: dict[str, list[dict[str, Any]]]) -> None:
    """The table of three domains."""
    table = Table(title="Three domains, win rates at the end")
    for name in ("", *TASTES, "average", "forgetting", "backward transfer", "role swaps"):
        table.add_column(name)
    for name, of_arm in runs.items():
        table.add_row(
            name,
            *(interval([run["rows"][-1][place] for run in of_arm]) for place in range(len(TASTES))),
            *(interval([run[key] for run in of_arm]) for key in ("average", "forgetting", "backward")),
            swaps_by_seed(of_arm),
        )
    console.print(table)


def draw(figures: dict[str, Any], path: Path) -> None:
    """Curves of the one domain; and each arm's matrix, mean over seeds."""
    picture = Figure(figsize=(13, 7), layout="constrained")
    axes = picture.subplots(2, 4)
    for name, of_arm in figures["one_domain"].items():
        steps = [step for step, _ in of_arm[0]["curve"]]
        axes[0, 0].plot(
            steps, [statistics.fmean(r["curve"][i][1] for r in of_arm) for i in range(len(steps))], label=name
        )
        norms = zip(*(run["gradient_norms"] for run in of_arm), strict=True)
        axes[0, 1].plot([statistics.fmean(row) for row in norms], label=name)
    axes[0, 0].set(title="One domain: win rate", xlabel="optimizer steps")
    axes[0, 1].set(title="One domain: gradient norm", xlabel="optimizer steps", yscale="log")
    names = list(figures["sequences"])
    for axis, key, title in (
        (axes[0, 2], "average", "Average win rate at the end"),
        (axes[0, 3], "forgetting", "Forgetting"),
    ):
        means = [statistics.fmean(run[key] for run in figures["sequences"][name]) for name in names]
        axis.barh(names, means, color=[f"C{place}" for place in range(len(names))])
        axis.invert_yaxis()
        axis.set(title=title)
    axes[0, 2].set_xlim(0, 1)
    axes[0, 3].set_yticks([])
    axes[0, 0].legend()
    for axis, (name, of_arm) in zip(axes[1], figures["sequences"].items(), strict=True):
        count = len(TASTES)
        mean = [[statistics.fmean(run["rows"][i + 1][j] for run in of_arm) for j in range(count)] for i in range(count)]
        axis.imshow(mean, vmin=0, vmax=1, cmap="RdYlGn")
        for i in range(count):
            for j in range(count):
                axis.text(j, i, f"{mean[i][j]:.2f}", ha="center", va="center")
        axis.set(title=name, xticks=range(count), yticks=range(count), ylabel="after domain", xlabel="win rate in")
        axis.set_xticklabels(list(TASTES))
        axis.set_yticklabels([f"{i + 1}" for i in range(count)])
    picture.savefig(path.with_suffix(".svg"))
    picture.savefig(path.with_suffix(".png"), dpi=120)


def main() -> None:
    """Run every arm for every seed, and show what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps a domain")
    parser.add_argument("--held-out", type=int, default=80, help="prompts a domain that win rates are measured on")
    parser.add_argument(
        "--swap-interval", type=int, default=4, help="optimizer steps between two comparisons of the adapters"
    )
    parser.add_argument("--target", type=float, default=0.75, help="win rate that steps are counted to")
    parser.add_argument(
        "--home", type=Path, default=Path("~/.cache/sparring").expanduser(), help="where the demo's world is kept"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/fast_slow"))
    arguments = parser.parse_args()
    console = Console(width=160)
    logging.disable_progress_bar()
    arguments.out.mkdir(parents=True, exist_ok=True)
    arms: dict[str, dict[str, dict[str, Any]]] = {"one_domain": ONE_DOMAIN, "sequences": SEQUENCES}
    figures: dict[str, Any] = {experiment: {arm: [] for arm in of} for experiment, of in arms.items()}
    with Progress(console=console) as bars:
        building: dict[str, Any] = {}

        def built(stage: str, done: int, total: int) -> None:
            if stage not in building:
                building[stage] = bars.add_task(stage, total=total)
            bars.update(building[stage], completed=done)

        world = ensure_world(arguments.home, 0, built)
        for seed in arguments.seeds:
            task = bars.add_task(
                f"Seed {seed}", total=arguments.steps * (len(ONE_DOMAIN) + len(SEQUENCES) * len(TASTES))
            )
            tell = functools.partial(bars.advance, task)
            bench = Bench(world, "fast-slow", seed, arguments.steps, arguments.held_out)
            size = f"steps-{arguments.steps}-held-out-{arguments.held_out}-seed-{seed}"
            for experiment, train in (("one_domain", one_domain), ("sequences", sequence)):
                for arm, settings in arms[experiment].items():
                    swap = f"-swap-{arguments.swap_interval}" if "slow" in settings else ""
                    path = arguments.out / f"{experiment}-{arm.replace(', ', '-').replace(' ', '-')}{swap}-{size}.json"
                    if not path.exists():
                        path.write_text(json.dumps(train(bench, arguments.swap_interval, tell, **settings), indent=1))
                    figures[experiment][arm].append(json.loads(path.read_text()))
    show_one_domain(console, figures["one_domain"], arguments.target)
    show_sequences(console, figures["sequences"])
    for seed, run in zip(arguments.seeds, figures["sequences"]["COFS-DPO"], strict=True):
        shown = ", ".join(f"{name.split('/')[1]} {w:.2f}" for name, w in run["weights"].items() if "/" in name)
        console.print(f"COFS weights, seed {seed}: {shown}")
    draw(figures, arguments.out / "figure")
    console.print(f"Pictures and figures: {arguments.out}")


if __name__ == "__main__":
    main()
