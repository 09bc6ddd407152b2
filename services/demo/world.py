"""The demo's world on disk: prompts, a policy, and a PairRM; built on first use, then cached.

A world depends on its seed and on the code that builds it, and on nothing else: on one machine the same weights come out again.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from learner.records import Prompt
from learner.seeds import derive_seed
from services.demo.domain import UNSEEN_TOPIC, draw_answer, prompt_sets, read_question

if TYPE_CHECKING:
    from workers.scorers.preferences import PreferencePair

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""

THREADS = 2
"""torch threads of all trainings. Fixed, since sums over other numbers of threads round differently."""

SOURCES = ("domain.py", "rubric.py", "policy.py", "pairs.py", "world.py")
ABOUT_FILE = "world.json"


@dataclass(frozen=True)
class WorldRecipe:
    """How large a world is. Tests build smaller ones."""

    policy_steps: int = 240
    sampled_prompts: int = 600
    sampled_answers: int = 4
    template_pairs: int = 24_000
    scorer_steps: int = 850
    tested_prompts: int = 128


DEFAULT_RECIPE = WorldRecipe()
MAX_ANSWER_TOKENS = 48


@dataclass(frozen=True)
class DemoWorld:
    """Where the parts lie, and how often PairRM agrees with the rubric on pairs that it has not seen.

    ``pairrm_accuracy`` is over held-out pairs like those that it was trained on; ``pairrm_policy_accuracy`` and
    ``pairrm_unseen_accuracy`` over pairs of the policy's own answers, to held-out prompts and to those of the unseen topic.
    """

    root: Path
    seed: int
    pairrm_accuracy: float
    pairrm_policy_accuracy: float
    pairrm_unseen_accuracy: float

    @property
    def policy(self) -> Path:
        """The policy's folder, in the transformers format."""
        return self.root / "policy"

    @property
    def pairrm(self) -> Path:
        """PairRM's folder."""
        return self.root / "pairrm"

    @property
    def prompts_train(self) -> Path:
        """Prompts for self-play: every topic but the unseen one."""
        return self.root / "prompts_train.jsonl"

    @property
    def prompts_eval(self) -> Path:
        """Held-out prompts of the same topics."""
        return self.root / "prompts_eval.jsonl"

    @property
    def prompts_unseen(self) -> Path:
        """Held-out prompts of the topic that self-play never sees."""
        return self.root / "prompts_unseen.jsonl"


def ensure_world(home: Path, seed: int, progress: Progress, recipe: WorldRecipe = DEFAULT_RECIPE) -> DemoWorld:
    """The world of a seed: the cached one, or a new one, which appears whole or not at all.

    Args:
        home: Sparring's home; worlds lie under ``demo``.
        seed: every draw derives from it.
        progress: called as the building goes on, not at all for a cached world.
        recipe: its size.
    """
    root = home / "demo" / f"world-{seed}-{_code_digest(recipe)[:12]}"
    if not (root / ABOUT_FILE).exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
        try:
            _build(building, seed, progress, recipe)
            try:
                building.rename(root)
            except OSError:
                # Another process was faster; its world is the same.
                if not (root / ABOUT_FILE).exists():
                    raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
    about = json.loads((root / ABOUT_FILE).read_text(encoding="utf-8"))
    return DemoWorld(
        root=root,
        seed=seed,
        pairrm_accuracy=about["pairrm_accuracy"],
        pairrm_policy_accuracy=about["pairrm_policy_accuracy"],
        pairrm_unseen_accuracy=about["pairrm_unseen_accuracy"],
    )


def _code_digest(recipe: WorldRecipe) -> str:
    """A digest of the building code and the recipe, so that a cached world never outlives a change of either."""
    digest = hashlib.sha256(repr(recipe).encode())
    for name in SOURCES:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()


def _build(root: Path, seed: int, progress: Progress, recipe: WorldRecipe) -> None:
    from transformers.utils import logging

    from services.demo.policy import sample_answers

    logging.disable_progress_bar()  # ours tell more
    prompts = prompt_sets(seed)
    _write_prompts(root / "prompts_train.jsonl", prompts.train)
    _write_prompts(root / "prompts_eval.jsonl", prompts.evaluation)
    _write_prompts(root / "prompts_unseen.jsonl", prompts.unseen)
    building = (*prompts.train, *prompts.unseen_building)

    loss = _build_policy(root / "policy", building, seed, progress, recipe)

    rng = random.Random(derive_seed("demo", seed, "sampled prompts"))
    asked = [rng.choice(building) for _ in range(recipe.sampled_prompts)]
    tested = [*prompts.evaluation[: recipe.tested_prompts], *prompts.unseen[: recipe.tested_prompts]]
    answers = sample_answers(
        root / "policy",
        [prompt.messages[-1].text for prompt in (*asked, *tested)],
        count=recipe.sampled_answers,
        max_tokens=MAX_ANSWER_TOKENS,
        seed=seed,
        threads=THREADS,
        progress=lambda done, total: progress("Policy: sample answers", done, total),
    )
    accuracies = _build_pairrm(
        root / "pairrm",
        building,
        (asked, answers[: len(asked)]),
        (tested, answers[len(asked) :]),
        seed,
        progress,
        recipe,
    )
    about = {"seed": seed, "policy_loss": loss, **accuracies}
    (root / ABOUT_FILE).write_text(json.dumps(about, indent=2) + os.linesep, encoding="utf-8")


def _build_policy(out: Path, prompts: tuple[Prompt, ...], seed: int, progress: Progress, recipe: WorldRecipe) -> float:
    """Tokenizer and policy, trained on one drawn answer to each drawn prompt."""
    from services.demo.policy import PolicyRecipe, train_policy, train_tokenizer

    policy = PolicyRecipe(steps=recipe.policy_steps)
    rng = random.Random(derive_seed("demo", seed, "pre-training"))
    questions = [rng.choice(prompts).messages[-1].text for _ in range(policy.steps * policy.batch)]
    pairs = []
    for question in questions:
        fact = read_question(question)
        assert fact is not None
        pairs.append((question, draw_answer(fact, rng).text))
    tokenizer = train_tokenizer([text for pair in pairs[:4000] for text in pair], out)
    return train_policy(
        pairs,
        tokenizer,
        out,
        seed=seed,
        threads=THREADS,
        progress=lambda done, total: progress("Policy: train", done, total),
        recipe=policy,
    )


Answered = tuple[list[Prompt], list[list[str]]]
"""Prompts and the policy's answers to each."""


def _build_pairrm(
    out: Path,
    prompts: tuple[Prompt, ...],
    sampled: Answered,
    tested: Answered,
    seed: int,
    progress: Progress,
    recipe: WorldRecipe,
) -> dict[str, float]:
    """A PairRM trained on drawn and on sampled answers; returns its accuracies by their names in ``DemoWorld``."""
    from services.demo.pairs import sampled_pairs, template_pairs
    from services.demo.policy import torch_settings
    from workers.scorers.training import train_pairrm
    from workers.scorers.training_config import TrainScorerConfig

    rng = random.Random(derive_seed("demo", seed, "pairs"))
    pairs = template_pairs((rng.choice(prompts) for _ in range(recipe.template_pairs)), rng) + sampled_pairs(*sampled)
    config = TrainScorerConfig(
        steps=recipe.scorer_steps,
        batch_size=32,
        vocabulary=640,
        held_out=0.05,
        learning_rate=2e-3,
        max_source_tokens=128,
        max_total_tokens=512,
        device="cpu",
        threads=THREADS,
        seed=derive_seed("demo", seed, "pairrm"),
    )
    with torch_settings(THREADS, config.seed):
        report = train_pairrm(config, pairs, out, lambda at: progress(f"PairRM: {at.stage}", at.done, at.total))
        held_out = sampled_pairs(*tested)
        unseen = [pair for pair in held_out if pair.prompt.domain == UNSEEN_TOPIC]
        seen = [pair for pair in held_out if pair.prompt.domain != UNSEEN_TOPIC]
        return {
            "pairrm_accuracy": report.accuracy or 0.0,
            "pairrm_policy_accuracy": agreement(out, seen),
            "pairrm_unseen_accuracy": agreement(out, unseen),
        }


def agreement(pairrm: Path, pairs: list[PreferencePair]) -> float:
    """Share of pairs whose better answer PairRM prefers, over both orders."""
    from workers.config import PairRMScorer
    from workers.scorers.base import Comparison
    from workers.scorers.pairrm import PairRMPreferenceScorer

    scorer = PairRMPreferenceScorer(PairRMScorer(model=str(pairrm)), device="cpu", batch_tokens=16384)
    results = scorer.score([Comparison(pair.prompt, (pair.response_a, pair.response_b)) for pair in pairs])
    hits = [
        (result.ordered_logits[0, 1] < result.ordered_logits[1, 0]) == (pair.preference_b > 0.5)
        for result, pair in zip(results, pairs, strict=True)
    ]
    return sum(map(bool, hits)) / len(hits)


def _write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    lines = (
        json.dumps({"id": prompt.id, "prompt": prompt.messages[-1].text, "domain": prompt.domain}) for prompt in prompts
    )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
