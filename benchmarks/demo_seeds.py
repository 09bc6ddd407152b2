"""The demo over several seeds, and its control with shuffled preferences: win rates with intervals, as one table.

    .venv/bin/python benchmarks/demo_seeds.py --seeds 0 1 2 --control 0

Each run is `sparring demo` in a home of its own under ``--out``, so nothing is shared but the program. The win rate is of the last version
against version 0 on held-out prompts, by PairRM and by the rubric; `best` is the version that the job chose.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from services.jobs.store import JobStore


@dataclass(frozen=True)
class Run:
    """One demo."""

    seed: int
    shuffled: bool

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{'control' if self.shuffled else 'seed'}-{self.seed}"


def play(run: Run, out: Path, rounds: int) -> float:
    """Run the demo to its end; returns seconds.

    Raises:
        SystemExit: it failed; its output is printed.
    """
    home = out / run.name
    home.mkdir(parents=True, exist_ok=True)
    command = [str(Path(sys.executable).parent / "sparring"), "demo", "--seed", str(run.seed), "--rounds", str(rounds)]
    began = time.monotonic()
    done = subprocess.run(
        [*command, *(["--shuffle"] if run.shuffled else [])],
        env={**os.environ, "SPARRING_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    (home / "output.txt").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise SystemExit(f"{run.name} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return time.monotonic() - began


def rows(run: Run, out: Path, seconds: float) -> list[list[str]]:
    """The table's rows of one run: every version."""
    store = JobStore(f"sqlite:///{out / run.name / 'sparring.sqlite'}")
    job = store.list(limit=1)[0]
    result = []
    for version in store.versions(job.id):
        metrics = version.metrics
        cells = [run.name, f"v{version.version}{' best' if version.best else ''}"]
        for name in ("win_rate", "gold_win_rate"):
            cells.append(f"{metrics[name]:.1%} [{metrics[f'{name}_low']:.1%}, {metrics[f'{name}_high']:.1%}]")
        cells += [f"{metrics['tie_rate']:.1%}", f"{metrics['kl_nats']:.2f}", f"{metrics['answer_length_tokens']:.1f}"]
        cells.append(f"{metrics.get('pairs_per_second') or 0:.1f}")
        result.append(cells)
    result[-1].append(f"{seconds:.0f} s")
    return result


def main() -> None:
    """Run them all, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--control", type=int, nargs="*", default=[0], help="seeds of runs with shuffled preferences")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/demo-seeds"))
    arguments = parser.parse_args()
    table = Table(title="Win rate against version 0 (95 % intervals, ties count one half)")
    for heading in ("run", "version", "PairRM", "rubric", "ties", "KL (nats)", "tokens", "pairs/s", "time"):
        table.add_column(heading)
    out = arguments.out.resolve()
    runs = [Run(seed, False) for seed in arguments.seeds] + [Run(seed, True) for seed in arguments.control]
    for run in runs:
        for row in rows(run, out, play(run, out, arguments.rounds)):
            table.add_row(*row)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
