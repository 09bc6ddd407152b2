"""A step with two adapters against a step with one: time, peak memory, and what a second adapter weighs.

    .venv/bin/python -m benchmarks.two_adapters                            # a small model on the CPU, two minutes
    .venv/bin/python -m benchmarks.two_adapters --shape 7b --device cuda   # a 7B-shaped random model, LoRA, bf16

One adapter learns by DPO; `average` keeps a moving average beside it; `chase` is OFS-DPO, whose passes follow one another: the slow adapter's
values without gradients, the fast one's step, the slow one's. On the CPU each way runs in a process of its own for its memory (what is freed
goes back to the system at once), and beside DPO, alternating, for its time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.objective_steps import SHAPES, scored_groups, timed, trainer

WAYS = {"one adapter": ("dpo", "off"), "average": ("dpo", "average"), "chase": ("chase", "chase")}

BATCH = (16, 2, 32, 96)
"""Groups, answers, tokens of prompts and of answers."""


def memory(way: str, shape: str, device: str, threads: int) -> float:
    """Peak MiB of a policy that makes three steps, over what stood before it was built."""
    kind, slow = WAYS[way]
    before = 0.0 if device == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    made = trainer(kind, SHAPES[shape], device, threads, slow)
    groups = scored_groups(*BATCH, SHAPES[shape]["vocab_size"])
    for _ in range(3):
        made.step(groups, 0)
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0 - before) / 2**20


def ratio(way: str, shape: str, device: str, threads: int, steps: int) -> tuple[float, float]:
    """Median seconds of a step, and the ratio to one adapter's; the two alternate."""
    kind, slow = WAYS[way]
    made, one = trainer(kind, SHAPES[shape], device, threads, slow), trainer("dpo", SHAPES[shape], device, threads)
    groups = scored_groups(*BATCH, SHAPES[shape]["vocab_size"])
    pairs = [(timed(made, groups)[0], timed(one, groups)[0]) for _ in range(steps + 1)][1:]  # the first warms up
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return mine, mine / theirs


def main() -> None:
    """Measure every way and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--memory-of", choices=list(WAYS), help="measure one way's memory here, and print JSON")
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(json.dumps(memory(arguments.memory_of, arguments.shape, arguments.device, arguments.threads)))
        return
    table = Table(title=f"A step of 16 pairs, {arguments.shape} model, {arguments.device}")
    for heading in ("adapters", "step (s)", "ratio", "peak (MiB)", "ratio"):
        table.add_column(heading, justify="left" if heading == "adapters" else "right")
    peaks: dict[str, float] = {}
    for way in WAYS:  # before anything is timed here, since a process inherits the peak of the one that starts it
        flags = ["--memory-of", way, "--shape", arguments.shape, "--device", arguments.device]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.two_adapters", *flags, "--threads", str(arguments.threads)],
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
            capture_output=True,
            text=True,
            check=True,
        )
        peaks[way] = float(json.loads(done.stdout.strip().splitlines()[-1]))
    first = peaks["one adapter"]
    for way, peak in peaks.items():
        seconds, against = ratio(way, arguments.shape, arguments.device, arguments.threads, arguments.steps)
        table.add_row(way, f"{seconds:.3f}", f"{against:.2f}", f"{peak:.0f}", f"{peak / first:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
