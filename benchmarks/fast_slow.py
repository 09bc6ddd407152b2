"""Fast and slow adapters against one adapter, in one domain and over three that conflict in part (OFS-DPO and COFS-DPO, arXiv 2406.05534).

    .venv/bin/python benchmarks/fast_slow.py
    .venv/bin/python benchmarks/fast_slow.py --seeds 0 1 2 3 4 --steps 120

The learner alone, on the demo's policy and topics: pairs of drawn answers, each seen once, labelled by the domain's own taste. Every domain wants
right answers; beyond that one wants courtesies, one few words and one many. Win rates are of fresh answers against the start policy's, judged by
the taste itself, ties one half. All arms see the same pairs in the same order and make the same number of steps.

* One domain: DPO, and OFS-DPO, whose slow adapter learns at 0.3 of the rate. Steps to a win rate, the last win rate, the gradient late on.
* Three domains in sequence: DPO with one adapter, OFS-DPO with one pair of them, COFS-DPO with fresh ones on the frozen combination, and DPO on all
  domains mixed, which has what the others have not: all domains at once.

Tables have means over seeds with 95 % t-intervals. Pictures and every figure (``figures.json``) are written under ``--out``.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from learner.config import TrainerConfig
from learner.records import Answer, AnswerSource, FinishReason, Prompt, ScoredGroup, ScorerIdentity
from learner.seeds import derive_seed
from learner.trainer import Trainer
from learner.transfer import TransferMatrix
from services.demo.domain import UNSEEN_TOPIC, draw_answer, prompt_sets, read_question, split_words
from services.demo.policy import render
from services.demo.rubric import mark
from services.demo.world import DemoWorld, ensure_world

PAIRS_PER_STEP = 16
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}
"""Student's t for a two-sided 95 % interval, by number of seeds."""

Taste = Callable[[str, str], float]


def _common(question: str, answer: str) -> float:
    marks = mark(question, answer)
    return marks.correct + marks.well_written


def courteous(question: str, answer: str) -> float:
    """Right, and polite."""
    return _common(question, answer) + mark(question, answer).polite


def brief(question: str, answer: str) -> float:
    """Right, in few words."""
    return _common(question, answer) - 0.5 * len(split_words(answer))


def ample(question: str, answer: str) -> float:
    """Right, in many words."""
    return _common(question, answer) + 0.5 * min(len(split_words(answer)), 24)


TASTES: dict[str, Taste] = {"courteous": courteous, "brief": brief, "ample": ample}

SEQUENCES: dict[str, dict[str, Any]] = {
    "DPO in sequence": {},
    "OFS-DPO in sequence": {"slow": "chase"},
    "COFS-DPO": {"slow": "chase", "combine": "cofs"},
    "DPO, domains mixed": {"mixed": True},
}


@dataclass(frozen=True)
class Bench:
    """What all arms share: the policy, and each domain's prompts."""

    world: DemoWorld
    seed: int
    steps: int
    held_out: int

    def model(self) -> Any:
        """A fresh copy of the start policy."""
        return copy.deepcopy(AutoModelForCausalLM.from_pretrained(self.world.policy, dtype=torch.float32).eval())

    @property
    def tokenizer(self) -> Any:
        """The policy's tokenizer."""
        return AutoTokenizer.from_pretrained(self.world.policy)

    def prompts(self, domain: str, *, held_out: bool) -> list[Prompt]:
        """A domain is a topic of its own, with its taste."""
        sets = prompt_sets(self.world.seed)
        every = sets.evaluation if held_out else sets.train
        topics = sorted({str(prompt.domain) for prompt in every} - {UNSEEN_TOPIC})
        topic = topics[list(TASTES).index(domain)]
        found = [prompt for prompt in every if prompt.domain == topic]
        return found[: self.held_out] if held_out else found

    def batches(self, domain: str) -> list[list[ScoredGroup]]:
        """One optimizer batch for each step, of pairs that are never seen again."""
        rng = random.Random(derive_seed("fast-slow", self.seed, domain))
        tokenizer, prompts = self.tokenizer, self.prompts(domain, held_out=False)
        groups: list[ScoredGroup] = []
        while len(groups) < self.steps * PAIRS_PER_STEP:
            prompt = rng.choice(prompts)
            question = prompt.messages[-1].text
            fact = read_question(question)
            assert fact is not None
            texts = [draw_answer(fact, rng).text for _ in range(2)]
            marks = [TASTES[domain](question, text) for text in texts]
            if marks[0] != marks[1]:
                groups.append(_group(tokenizer, f"{domain}/{len(groups)}", prompt, texts, marks))
        return [groups[first : first + PAIRS_PER_STEP] for first in range(0, len(groups), PAIRS_PER_STEP)]

    def answers(self, trainer: Trainer, domain: str) -> list[str]:
        """One fresh answer of the fast adapter to each held-out prompt, at temperature 1; the draws are the same for all arms."""
        tokenizer = self.tokenizer
        questions = [prompt.messages[-1].text for prompt in self.prompts(domain, held_out=True)]
        inputs = tokenizer.pad({"input_ids": render(tokenizer, questions)}, padding_side="left", return_tensors="pt")
        torch.manual_seed(derive_seed("fast-slow", self.seed, domain, "answers"))
        with trainer.policy.evaluating():
            written = trainer.policy.model.generate(
                **inputs, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=48
            )
        texts: list[str] = tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return texts

    def win_rate(self, domain: str, answers: Sequence[str], start: Sequence[str]) -> float:
        """Of answers against the start policy's, by the domain's taste; ties one half."""
        questions = [prompt.messages[-1].text for prompt in self.prompts(domain, held_out=True)]
        taste = TASTES[domain]
        wins = [
            (taste(q, a) > taste(q, b)) + 0.5 * (taste(q, a) == taste(q, b))
            for q, a, b in zip(questions, answers, start, strict=True)
        ]
        return statistics.fmean(wins)

    def trainer(self, *, slow: str = "off", combine: str = "none", domains: bool = False, store: Any = None) -> Trainer:
        """A trainer on a copy of the start policy."""
        objective: dict[str, Any] = {"kind": "dpo", "beta": 0.1}
        config = {
            "job_id": "benchmark",
            "policy": {"model": str(self.world.policy)},
            "adapters": {"rank": 8, "alpha": 16, "slow": slow, "swap_interval": 25},
            "objective": objective if slow == "off" else {"kind": "chase", "inner": objective, "alpha": 0.1},
            "optimizer": {"learning_rate": 2e-3, "schedule": "constant", "warmup_ratio": 0.05, "span": "domain"},
            "schedule": {
                "rounds": 1,
                "prompts_per_round": self.steps * PAIRS_PER_STEP,
                "prompts_per_step": PAIRS_PER_STEP,
                "domains": list(TASTES) if domains else None,
                "combine": combine,
            },
            "learner": {"device": "cpu", "threads": 2},
            "seed": self.seed,
        }
        fetch = (lambda module, version: store[module, version]) if store is not None else (lambda module, version: {})
        return Trainer(TrainerConfig.model_validate(config), fetch, base=self.model())


def _group(tokenizer: Any, name: str, prompt: Prompt, texts: Sequence[str], marks: Sequence[float]) -> ScoredGroup:
    logit = marks[0] - marks[1]
    return ScoredGroup(
        group_id=name,
        round=0,
        index=0,
        version=0,
        prompt=prompt,
        prompt_token_ids=tuple(render(tokenizer, [prompt.messages[-1].text])[0]),
        answers=tuple(
            Answer(
                text=text,
                token_ids=(*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id),
                finish_reason=FinishReason.GIVEN,
                source=AnswerSource.FILE,
            )
            for text in texts
        ),
        scorer=ScorerIdentity(kind="function", name="taste", version="1"),
        ordered_logits=((0.0, logit), (-logit, 0.0)),
    )


def one_domain(bench: Bench, slow: str, tell: Callable[[], None]) -> dict[str, Any]:
    """Train in the first domain, and measure the win rate as it goes."""
    domain = next(iter(TASTES))
    trainer = bench.trainer(slow=slow)
    trainer.begin_version(0, 0)
    start = bench.answers(trainer, domain)
    every = max(1, bench.steps // 8)
    curve, norms = [(0, 0.5)], []
    for number, batch in enumerate(bench.batches(domain), 1):
        norms.append(trainer.step(batch, 0).metrics["gradient_norm"])
        if number % every == 0 or number == bench.steps:
            curve.append((number, bench.win_rate(domain, bench.answers(trainer, domain), start)))
        tell()
    late = norms[-max(1, len(norms) // 4) :]
    return {"curve": curve, "gradient_norms": norms, "late_gradient_norm": statistics.fmean(late)}


def sequence(
    bench: Bench, tell: Callable[[], None], slow: str = "off", combine: str = "none", mixed: bool = False
) -> dict[str, Any]:
    """Train over the domains; the win rate in every domain after each."""
    domains = list(TASTES)
    store: dict[tuple[str, int], Mapping[str, bytes]] = {}
    trainer = bench.trainer(slow=slow, combine=combine, domains=not mixed, store=store)
    trainer.begin_version(0, 0)
    starts = {domain: bench.answers(trainer, domain) for domain in domains}
    batches = {domain: bench.batches(domain) for domain in domains}
    stages: list[tuple[str | None, list[list[ScoredGroup]]]] = [(domain, batches[domain]) for domain in domains]
    if mixed:
        everything = [group for of_domain in batches.values() for batch in of_domain for group in batch]
        random.Random(derive_seed("fast-slow", bench.seed, "mixed")).shuffle(everything)
        size = len(everything) // len(domains)
        parts = [everything[i * size : (i + 1) * size] for i in range(len(domains))]
        stages = [(None, [part[i : i + PAIRS_PER_STEP] for i in range(0, size, PAIRS_PER_STEP)]) for part in parts]
    rows: list[list[float]] = [[0.5] * len(domains)]
    weights: dict[str, float] = {}
    version = 0

    def publish() -> None:
        snapshot = trainer.snapshot(version)
        store["fast", version] = snapshot.files
        if snapshot.slow is not None:
            store["slow", version] = snapshot.slow.files

    publish()
    for number, (domain, of_stage) in enumerate(stages):
        trainer.begin_version(version, version, domain)
        for batch in of_stage:
            trainer.step(batch, version)
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
    return {"rows": rows, **measured, "weights": weights}


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % t-interval over seeds."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = T_95.get(len(values), 2.0) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.3f} ± {half:.3f}"


def steps_to(curve: Sequence[tuple[int, float]], target: float) -> float:
    """The first measured step at which the win rate is reached; infinity where it never is."""
    return next((float(step) for step, rate in curve if rate >= target), math.inf)


def show_one_domain(console: Console, runs: dict[str, list[dict[str, Any]]], target: float) -> None:
    """The table of one domain."""
    table = Table(title=f"One domain ({next(iter(TASTES))}), equal steps")
    for name in ("", f"steps to {target:.0%}", "win rate at the end", "gradient norm, last quarter"):
        table.add_column(name)
    for name, of_arm in runs.items():
        reached = [steps_to(run["curve"], target) for run in of_arm]
        table.add_row(
            name,
            ", ".join("never" if math.isinf(step) else f"{step:.0f}" for step in reached),
            interval([run["curve"][-1][1] for run in of_arm]),
            interval([run["late_gradient_norm"] for run in of_arm]),
        )
    console.print(table)


def show_sequences(console: Console, runs: dict[str, list[dict[str, Any]]]) -> None:
    """The table of three domains."""
    table = Table(title="Three domains, win rates at the end")
    for name in ("", *TASTES, "average", "forgetting", "backward transfer"):
        table.add_column(name)
    for name, of_arm in runs.items():
        table.add_row(
            name,
            *(interval([run["rows"][-1][place] for run in of_arm]) for place in range(len(TASTES))),
            *(interval([run[key] for run in of_arm]) for key in ("average", "forgetting", "backward")),
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
    for place, name in enumerate(figures["sequences"]):
        values = [statistics.fmean(run["average"] for run in figures["sequences"][name])]
        axes[0, 2].bar(place, values[0], label=name)
        axes[0, 3].bar(place, statistics.fmean(run["forgetting"] for run in figures["sequences"][name]), label=name)
    axes[0, 2].set(title="Average win rate at the end", xticks=[], ylim=(0.4, 1))
    axes[0, 3].set(title="Forgetting", xticks=[])
    axes[0, 0].legend()
    axes[0, 2].legend(fontsize="small")
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
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps a domain")
    parser.add_argument("--held-out", type=int, default=80, help="prompts a domain that win rates are measured on")
    parser.add_argument("--target", type=float, default=0.75, help="win rate that steps are counted to")
    parser.add_argument(
        "--home", type=Path, default=Path("~/.cache/sparring").expanduser(), help="where the demo's world is kept"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/fast_slow"))
    arguments = parser.parse_args()
    console = Console(width=160)
    logging.disable_progress_bar()
    with Progress(console=console) as bars:
        building: dict[str, Any] = {}

        def built(stage: str, done: int, total: int) -> None:
            if stage not in building:
                building[stage] = bars.add_task(stage, total=total)
            bars.update(building[stage], completed=done)

        world = ensure_world(arguments.home, 0, built)
        arms = {"DPO": "off", "OFS-DPO": "chase"}
        work = len(arguments.seeds) * arguments.steps * (len(arms) + len(SEQUENCES) * len(TASTES))
        task = bars.add_task("Steps", total=work)

        def tell() -> None:
            bars.advance(task)

        figures: dict[str, Any] = {"one_domain": {arm: [] for arm in arms}, "sequences": {arm: [] for arm in SEQUENCES}}
        for seed in arguments.seeds:
            bench = Bench(world, seed, arguments.steps, arguments.held_out)
            for arm, slow in arms.items():
                figures["one_domain"][arm].append(one_domain(bench, slow, tell))
            for arm, settings in SEQUENCES.items():
                figures["sequences"][arm].append(sequence(bench, tell, **settings))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "figures.json").write_text(json.dumps(figures, indent=1))
    show_one_domain(console, figures["one_domain"], arguments.target)
    show_sequences(console, figures["sequences"])
    for seed, run in zip(arguments.seeds, figures["sequences"]["COFS-DPO"], strict=True):
        shown = ", ".join(f"{name.split('/')[1]} {w:.2f}" for name, w in run["weights"].items() if "/" in name)
        console.print(f"COFS weights, seed {seed}: {shown}")
    draw(figures, arguments.out / "figure")
    console.print(f"Pictures and figures: {arguments.out}")


if __name__ == "__main__":
    main()
