"""What an optimizer step costs under each objective, as a ratio to DPO's, with tokens a second and, on a GPU, peak memory.

    .venv/bin/python benchmarks/objective_steps.py                            # a small model on the CPU, a minute
    .venv/bin/python benchmarks/objective_steps.py --shape 7b --device cuda   # a 7B-shaped random model, LoRA, bf16

Needs torch, transformers and peft alone. On the CPU the kind's steps and DPO's alternate, and the ratio is that of their medians, so that
a noisy machine disturbs both alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig

from learner.config import TrainerConfig
from learner.objectives.parameters import BUILT_IN
from learner.records import Answer, AnswerSource, FinishReason, Prompt, SamplingParameters, ScoredGroup, ScorerIdentity
from learner.trainer import Trainer

SHAPES: dict[str, dict[str, int]] = {
    "small": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 8000,
    },
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    },
}


def scored_groups(
    count: int, answers: int, prompt_tokens: int, answer_tokens: int, vocabulary: int
) -> list[ScoredGroup]:
    """Random groups; the first answer is best."""
    generator = torch.Generator().manual_seed(0)

    def draw(tokens: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, vocabulary, (tokens,), generator=generator).tolist())

    groups = []
    for index in range(count):
        texts = [draw(answer_tokens - index % 7) for _ in range(answers)]
        rows = tuple(tuple(float(j - i) for j in range(answers)) for i in range(answers))
        groups.append(
            ScoredGroup(
                group_id=f"r0/{index}",
                round=0,
                index=index,
                version=0,
                prompt=Prompt.of(str(index), "?"),
                prompt_token_ids=draw(prompt_tokens),
                answers=tuple(_answer(text) for text in texts),
                scorer=ScorerIdentity(kind="function", name="benchmark", version="1"),
                ordered_logits=rows,
            )
        )
    return groups


def _answer(token_ids: tuple[int, ...]) -> Answer:
    return Answer(
        text=str(token_ids[:8]),
        token_ids=token_ids,
        logprobs=tuple(-9.0 for _ in token_ids),
        finish_reason=FinishReason.STOP,
        source=AnswerSource.POLICY,
        module="fast",
        version=0,
        adapter_digest="0" * 64,
        sampling=SamplingParameters(temperature=1.0, top_p=1.0, top_k=0, max_tokens=len(token_ids)),
        seed=0,
        sampler="benchmark",
    )


def trainer(kind: str, shape: dict[str, int], device: str, threads: int, slow: str = "off") -> Trainer:
    """A trainer of a random model of this shape under ``kind`` at its defaults; `chase` trains two adapters."""
    torch.manual_seed(0)
    config = LlamaConfig(**shape, max_position_embeddings=2048)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device(device):
        base = AutoModelForCausalLM.from_config(config, dtype=dtype)
    settings: dict[str, Any] = {
        "job_id": "benchmark",
        "policy": {"model": "random"},
        "adapters": {"rank": 16, "alpha": 32, "slow": "chase" if kind == "chase" else slow},
        "objective": {"kind": kind},
        "schedule": {"rounds": 1, "prompts_per_round": 64, "prompts_per_step": 16},
        "learner": {
            "device": device,
            "threads": threads,
            "micro_batch_tokens": 8192,
            "gradient_checkpointing": device == "cuda",
        },
    }
    made = Trainer(TrainerConfig.model_validate(settings), lambda module, version: {}, base=base)
    made.begin_version(0, 0)
    return made


def timed(made: Trainer, groups: list[ScoredGroup]) -> tuple[float, int]:
    """Seconds and tokens of one step."""
    began = time.perf_counter()
    tokens = made.step(groups, 0).tokens
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began, tokens


def main() -> None:
    """Measure and print."""
    kinds = [str(model.model_fields["kind"].default) for model in BUILT_IN]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", choices=kinds, default=kinds)
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--answers", type=int, default=4)
    parser.add_argument("--answer-tokens", type=int, default=48)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    groups = scored_groups(
        arguments.prompts, arguments.answers, arguments.prompt_tokens, arguments.answer_tokens, shape["vocab_size"]
    )
    table = Table(title=f"A step of {arguments.prompts} prompts, {arguments.shape} model, {arguments.device}")
    for heading in ("kind", "step (s)", "ratio to DPO", "tokens/s", "peak GPU memory (GiB)"):
        table.add_column(heading, justify="left" if heading == "kind" else "right")
    alone = arguments.device == "cuda"
    baseline: Trainer | None = None if alone else trainer("dpo", shape, arguments.device, arguments.threads)
    dpo_seconds = 0.0
    for kind in sorted(arguments.kinds, key=lambda kind: kind != "dpo"):
        if alone:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        made = trainer(kind, shape, arguments.device, arguments.threads)
        seconds: list[float] = []
        dpo: list[float] = []
        tokens = 0
        for step in range(arguments.steps + 1):
            for which, kept in ((made, seconds), (baseline, dpo)):
                if which is not None:
                    took, count = timed(which, groups)
                    tokens = count if which is made else tokens
                    if step:  # the first one warms up
                        kept.append(took)
        median = statistics.median(seconds)
        if kind == "dpo":
            dpo_seconds = median
        against = statistics.median(dpo) if dpo else dpo_seconds
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if alone else ""
        table.add_row(
            kind, f"{median:.3f}", f"{median / against:.2f}" if against else "", f"{tokens / median:.0f}", memory
        )
        del made
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
