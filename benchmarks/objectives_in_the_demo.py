"""Every objective in the demo world, through the whole loop: win rates, KL, entropy and length after a few rounds, as one table.

    .venv/bin/python benchmarks/objectives_in_the_demo.py
    .venv/bin/python benchmarks/objectives_in_the_demo.py --kinds dpo simpo --rounds 4

Each run is `sparring run` with the demo's job and another objective at its defaults, or at the values for small models that stand below
with their reasons. Seconds a step are the learner's, divided by DPO's of the same command; benchmarks/objective_steps.py measures them
more exactly.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from learner.objectives.parameters import BUILT_IN
from services.demo.job import demo_spec
from services.demo.world import DemoWorld, ensure_world
from services.jobs.spec import JobSpec
from services.jobs.store import JobStore

SMALL_MODELS: dict[str, dict[str, Any]] = {
    "sppo": {"beta": 0.05},  # eta 1000 asks for 400 nats at once
    "ipo": {"tau": 0.25},  # 1 / (2 tau) = 5 nats of margin are more than a round of this model can take
}
NOT_IN_A_LOOP = {
    "nash-md": "its opponent is a mixture of two policies, and a request to a sampler carries one adapter: offline only",
}
NEEDS: dict[str, dict[str, Any]] = {
    "xpo": {"sampling": {"opponent": "start", "answers": 2}},
    "chase": {"adapters": {"slow": "chase"}},
}
"""What a kind needs beside the demo's own job."""


def job(world: DemoWorld, kind: str, rounds: int, count: int, seed: int) -> dict[str, Any]:
    """The demo's job with another objective."""
    spec = demo_spec(world, seed=seed, rounds=rounds, name=kind).model_dump(mode="json")
    spec["objective"] = {"kind": kind, **SMALL_MODELS.get(kind, {})}
    spec["evaluation"] |= {"every": rounds, "count": count}
    for section, values in NEEDS.get(kind, {}).items():
        spec[section] |= values
    return spec


def play(kind: str, spec: dict[str, Any], home: Path) -> dict[str, Any]:
    """Run a job; returns the last version's metrics, or what went wrong."""
    home.mkdir(parents=True, exist_ok=True)
    file = home / "job.json"
    file.write_text(json.dumps(spec))
    began = time.monotonic()
    done = subprocess.run(
        [str(Path(sys.executable).parent / "sparring"), "run", str(file)],
        env={**os.environ, "SPARRING_HOME": str(home), "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        check=False,
    )
    (home / "output.txt").write_text(done.stdout + done.stderr)
    if done.returncode:
        return {"error": (done.stderr or done.stdout).strip().splitlines()[-1]}
    store = JobStore(f"sqlite:///{home / 'sparring.sqlite'}")
    record = store.list(limit=1)[0]
    schedule = spec["schedule"]
    steps = schedule["rounds"] * schedule["prompts_per_round"] / schedule["prompts_per_step"]
    rounds = [version.metrics.get("learning_seconds") or 0.0 for version in store.versions(record.id)]
    newest = store.versions(record.id)[-1].metrics
    series = store.newest_metrics(record.id)
    for name in ("loss", "margin", "accuracy"):
        if name in series:
            newest = {**newest, name: series[name].value}
    return {**newest, "seconds_per_step": sum(rounds) / steps, "seconds": time.monotonic() - began}


def main() -> None:
    """Run them one after another; a run that is already there is not made again."""
    kinds = [str(model.model_fields["kind"].default) for model in BUILT_IN]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", choices=kinds, default=[k for k in kinds if k not in NOT_IN_A_LOOP])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=256, help="held-out prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/objectives"))
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    results: dict[str, dict[str, Any]] = {}
    with Progress() as bars:
        building: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in building:
                building[stage] = bars.add_task(stage, total=total)
            bars.update(building[stage], completed=done)

        world = ensure_world(out, arguments.seed, tell)
        task = bars.add_task("objectives", total=len(arguments.kinds))
        for kind in arguments.kinds:
            file = out / f"{kind}.json"
            if not file.exists():
                spec = job(world, kind, arguments.rounds, arguments.count, arguments.seed)
                JobSpec.model_validate(spec)
                result = play(kind, spec, out / kind)
                if "error" in result:
                    results[kind] = result
                    bars.advance(task)
                    continue
                file.write_text(json.dumps(result, indent=2))
            results[kind] = json.loads(file.read_text())
            bars.advance(task)
    show(results)


def show(results: dict[str, dict[str, Any]]) -> None:
    """The table."""
    table = Table(title="After the last round, against version 0 (95 % intervals, ties count one half)")
    for heading in ("kind", "win rate", "gold win rate", "KL (nats)", "entropy (nats/token)", "tokens", "step / DPO's"):
        table.add_column(heading, justify="left" if heading == "kind" else "right")
    dpo = results.get("dpo", {}).get("seconds_per_step")
    for kind, result in results.items():
        if "error" in result:
            table.add_row(kind, f"[red]{result['error']}[/]")
            continue
        rates = [
            f"{result[name]:.1%} [{result[f'{name}_low']:.1%}, {result[f'{name}_high']:.1%}]"
            for name in ("win_rate", "gold_win_rate")
        ]
        entropy = result.get("entropy_nats_per_token")
        table.add_row(
            kind,
            *rates,
            f"{result['kl_nats']:.2f}",
            "" if entropy is None else f"{entropy:.2f}",
            f"{result['answer_length_tokens']:.1f}",
            f"{result['seconds_per_step'] / dpo:.2f}" if dpo else "",
        )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
