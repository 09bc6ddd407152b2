"""Training a PairRM from preference pairs, from nothing or from an existing one.

The loss is the cross-entropy of the pair's logit against the label, which for hard labels is llm-blender's
``-log sigmoid(s_better - s_worse)`` and takes soft labels too. Every pair is shown in a random order each time it is drawn, so that
the order itself carries no information and position bias stays small. Equal seeds and thread counts give equal weights.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from learner.errors import InputError
from workers.scorers.base import Comparison
from workers.scorers.batching import plan_batches
from workers.scorers.device import resolve_device
from workers.scorers.new_tokenizer import adopt_tokenizer, train_tokenizer
from workers.scorers.pairrm import score_pairs
from workers.scorers.pairrm_model import load_pairrm, new_pairrm, pair_logits, save_pairrm
from workers.scorers.pairrm_tokens import PairTokenizer, PairTokens, Segments
from workers.scorers.preferences import PreferencePair, split_by_prompt
from workers.scorers.quality import measure
from workers.scorers.text import render_pairrm, strip_thinking
from workers.scorers.training_config import ScorerReport, Size, TrainProgress, TrainScorerConfig
from workers.scorers.weights import weight_files, weights_digest

REPORT_FILE = "report.json"

_SIZES: dict[Size, dict[str, int]] = {
    "tiny": {
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 256,
        "position_buckets": 32,
    },
    "small": {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
        "position_buckets": 64,
    },
    "base": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "position_buckets": 256,
    },
}
_VOCABULARY: dict[Size, int] = {"tiny": 1024, "small": 8192, "base": 32768}
_LEARNING_RATE: dict[Size, float] = {"tiny": 1.5e-3, "small": 5e-4, "base": 1e-4}
_FINE_TUNING_RATE = 1e-5
_LOSS_SMOOTHING = 0.95

Progress = Callable[[TrainProgress], None]


def train_pairrm(
    config: TrainScorerConfig, pairs: Sequence[PreferencePair], out: Path, progress: Progress | None = None
) -> ScorerReport:
    """Train a PairRM, test it on held-out prompts, and write model, tokenizer and ``report.json`` to ``out``.

    Args:
        config: how.
        pairs: all pairs; a share is held out by prompt.
        out: folder to write to; it may exist, but must not hold other weights.
        progress: called as work proceeds, in this thread.

    Raises:
        InputError: too few pairs, a model or tokenizer that cannot be loaded, or an ``out`` that holds a model already.
    """
    report = progress or (lambda _: None)
    if out.exists() and (not out.is_dir() or any(out.glob("*.safetensors"))):
        raise InputError(f"out: {out} holds a model already or is no folder; give a new folder")
    training, held_out = split_by_prompt(pairs, config.held_out, config.seed)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = resolve_device(config.device, field="device")

    with torch.random.fork_rng(devices=[torch.device(device)] if device == "cuda" else []):
        torch.manual_seed(config.seed)
        model, tokenizer = _start(config, training)
        model.to(device)
        report(TrainProgress("tokenise", 0, len(training)))
        examples = _tokenise(tokenizer, training, config.strip_thinking)
        report(TrainProgress("tokenise", len(training), len(training)))
        started = time.monotonic()
        loss = _fit(model, tokenizer, examples, [pair.preference_b for pair in training], config, report)
        seconds = time.monotonic() - started

    model.eval()
    forward, backward, truncated = _test(model, tokenizer, held_out, config, report)
    quality = measure(forward, backward, [pair.preference_b for pair in held_out])
    out.mkdir(parents=True, exist_ok=True)
    save_pairrm(model.cpu(), tokenizer, out)
    result = ScorerReport(
        training_pairs=len(training),
        held_out_pairs=len(held_out),
        held_out_ties=quality.ties,
        accuracy=quality.accuracy,
        accuracy_low=quality.accuracy_low,
        accuracy_high=quality.accuracy_high,
        log_loss=quality.log_loss,
        position_bias=quality.position_bias,
        flip_share=quality.flip_share,
        calibration_error=quality.calibration_error,
        calibration=quality.calibration,
        truncated_share=truncated / len(held_out),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps=config.steps,
        final_loss=loss,
        seconds=seconds,
        weights_sha256=weights_digest(weight_files(out, field="out")),
    )
    (out / REPORT_FILE).write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return result


def _start(config: TrainScorerConfig, training: Sequence[PreferencePair]) -> tuple[Any, PairTokenizer]:
    lengths = {"max_source_tokens": config.max_source_tokens, "max_total_tokens": config.max_total_tokens}
    if config.start is not None:
        model, pair_tokenizer, _ = load_pairrm(config.start, **lengths, field="start")
        return model, pair_tokenizer
    if config.tokenizer is not None:
        tokenizer = adopt_tokenizer(config.tokenizer)
    else:
        texts = (
            text for pair in training for text in (pair.prompt.messages[-1].text, pair.response_a, pair.response_b)
        )
        tokenizer = train_tokenizer(texts, config.vocabulary or _VOCABULARY[config.size])
    pair_tokenizer = PairTokenizer(tokenizer, **lengths)
    return new_pairrm(pair_tokenizer, dropout=config.dropout, **_SIZES[config.size]), pair_tokenizer


def _tokenise(tokenizer: PairTokenizer, pairs: Sequence[PreferencePair], without_thinking: bool) -> list[Segments]:
    sources, candidates = [], []
    for pair in pairs:
        answers = [pair.response_a, pair.response_b]
        source, rendered = render_pairrm(pair.prompt, map(strip_thinking, answers) if without_thinking else answers)
        sources.append(source)
        candidates.append(rendered)
    return tokenizer.segments(sources, candidates)


def _fit(
    model: Any,
    tokenizer: PairTokenizer,
    examples: list[Segments],
    preference_b: list[float],
    config: TrainScorerConfig,
    report: Progress,
) -> float:
    """Train in place; returns the smoothed loss."""
    peak = config.learning_rate or (_LEARNING_RATE[config.size] if config.start is None else _FINE_TUNING_RATE)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True
    )
    warmup = max(1, round(config.warmup_ratio * config.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (config.steps - step) / max(1, config.steps - warmup + 1))
    )
    lengths = [len(example.source) + sum(map(len, example.candidates)) for example in examples]
    draws = _Draws(lengths, config.batch_size, random.Random(config.seed))
    smoothed = 0.0
    model.train()
    for step in range(config.steps):
        batch = draws.next()
        loss = 0.0
        for micro in plan_batches([lengths[index] for index, _ in batch], config.batch_tokens):
            shown: list[PairTokens] = []
            target: list[float] = []
            for index, swapped in (batch[position] for position in micro):
                first, second = examples[index].candidates[::-1] if swapped else examples[index].candidates
                shown.append(tokenizer.pair(examples[index].source, first, second))
                target.append(preference_b[index] if swapped else 1 - preference_b[index])
            logits = pair_logits(model, shown, tokenizer.pad_id)
            labels = torch.tensor(target, dtype=logits.dtype, device=logits.device)
            # A sum over micro-batches divided by the batch, so that splitting does not change the gradient.
            part = functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(batch)
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        smoothed = loss if step == 0 else _LOSS_SMOOTHING * smoothed + (1 - _LOSS_SMOOTHING) * loss
        report(TrainProgress("train", step + 1, config.steps, smoothed))
    return smoothed


class _Draws:
    """Batches of (example, swapped), epoch after epoch, reshuffled. Batches hold similar lengths, which spares padding."""

    _POOL = 8

    def __init__(self, lengths: list[int], batch_size: int, rng: random.Random) -> None:
        self._lengths, self._size, self._rng = lengths, min(batch_size, len(lengths)), rng
        self._waiting: list[list[tuple[int, bool]]] = []

    def next(self) -> list[tuple[int, bool]]:
        if not self._waiting:
            order = list(range(len(self._lengths)))
            self._rng.shuffle(order)
            pool = self._POOL * self._size
            for start in range(0, len(order), pool):
                part = sorted(order[start : start + pool], key=lambda index: self._lengths[index])
                for first in range(0, len(part) - self._size + 1, self._size):
                    self._waiting.append(
                        [(index, self._rng.random() < 0.5) for index in part[first : first + self._size]]
                    )
            self._rng.shuffle(self._waiting)
        return self._waiting.pop()


def _test(
    model: Any,
    tokenizer: PairTokenizer,
    held_out: Sequence[PreferencePair],
    config: TrainScorerConfig,
    report: Progress,
) -> tuple[list[float], list[float], int]:
    """Logits of the held-out pairs in both orders, and how many pairs had to be cut."""
    forward: list[float] = []
    backward: list[float] = []
    truncated = 0
    chunk = 256
    for start in range(0, len(held_out), chunk):
        part = held_out[start : start + chunk]
        comparisons = [Comparison(pair.prompt, (pair.response_a, pair.response_b)) for pair in part]
        results = score_pairs(
            model, tokenizer, comparisons, batch_tokens=config.batch_tokens, without_thinking=config.strip_thinking
        )
        forward += [float(result.ordered_logits[0, 1]) for result in results]
        backward += [float(result.ordered_logits[1, 0]) for result in results]
        truncated += sum(result.truncated_source or result.truncated_candidates > 0 for result in results)
        report(TrainProgress("test", start + len(part), len(held_out)))
    return forward, backward, truncated
