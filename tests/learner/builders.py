"""Small models and groups that the learner's tests share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from learner.config import TrainerConfig
from learner.records import Answer, AnswerSource, FinishReason, Prompt, SamplingParameters, ScoredGroup, ScorerIdentity

VOCABULARY = 64
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
FAMILIES: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "gemma": GemmaConfig,
    "gemma2": Gemma2Config,
    "gemma3": Gemma3TextConfig,
    "granite": GraniteConfig,
}


def tiny_model(family: str = "llama", tied: bool = False, **changes: Any) -> PreTrainedModel:
    """A model with random weights of a good size, always the same ones."""
    sizes = {**SIZES, **changes}
    if family == "qwen2":
        sizes.pop("head_dim")
    if family == "granite":
        sizes["logits_scaling"] = 3.0
    if family == "gemma2":
        sizes["final_logit_softcapping"] = 5.0
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(FAMILIES[family](tie_word_embeddings=tied, **sizes), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.2)
    return model.eval()


def answer(
    token_ids: Sequence[int], version: int | None = 0, text: str | None = None, truncated: bool = False
) -> Answer:
    """A policy's answer, or one from outside where ``version`` is None."""
    words = " ".join(map(str, token_ids)) if text is None else text
    if version is None:
        return Answer(
            text=words, token_ids=tuple(token_ids), finish_reason=FinishReason.GIVEN, source=AnswerSource.FEEDBACK
        )
    return Answer(
        text=words,
        token_ids=tuple(token_ids),
        logprobs=tuple(-1.0 for _ in token_ids),
        finish_reason=FinishReason.LENGTH if truncated else FinishReason.STOP,
        module="fast",
        version=version,
        adapter_digest="0" * 64,
        sampling=SamplingParameters(temperature=1.0, top_p=1.0, top_k=0, max_tokens=32),
        seed=0,
        sampler="sampler-0",
    )


def group(answers: Sequence[Answer], logits: Sequence[Sequence[float]], index: int = 0, round: int = 0) -> ScoredGroup:
    """A scored group with a short prompt that depends on its index."""
    return ScoredGroup(
        group_id=f"job/r{round}/{index}",
        round=round,
        index=index,
        version=max((a.version or 0) for a in answers),
        prompt=Prompt.of(str(index), f"question {index}"),
        prompt_token_ids=(1, 2 + index % 20, 3),
        answers=tuple(answers),
        scorer=ScorerIdentity(kind="function", name="test", version="1"),
        ordered_logits=tuple(tuple(float(x) for x in row) for row in logits),
    )


def bradley_terry(rewards: Sequence[float]) -> list[list[float]]:
    """Ordered logits of a scorer that gives rewards."""
    return [[a - b for b in rewards] for a in rewards]


def random_groups(count: int, seed: int = 0, answers: int = 3, version: int = 0, round: int = 0) -> list[ScoredGroup]:
    """Groups of random answers of different lengths, scored by how often they say 5."""
    generator = torch.Generator().manual_seed(seed)
    groups = []
    for index in range(count):
        texts = []
        for _ in range(answers):
            length = int(torch.randint(2, 12, (1,), generator=generator))
            texts.append(torch.randint(4, 20, (length,), generator=generator).tolist())
        rewards = [text.count(5) + 0.1 * i for i, text in enumerate(texts)]
        groups.append(group([answer(text, version) for text in texts], bradley_terry(rewards), index, round))
    return groups


def trainer_config(**changes: Any) -> TrainerConfig:
    """A small job's configuration."""
    settings: dict[str, Any] = {
        "job_id": "job",
        "policy": {"model": "tiny"},
        "adapters": {"rank": 4, "alpha": 8},
        "objective": {"kind": "sppo", "beta": 0.05},
        "optimizer": {"learning_rate": 5e-3, "schedule": "constant", "warmup_ratio": 0},
        "schedule": {"rounds": 2, "prompts_per_round": 8, "prompts_per_step": 4},
        "learner": {"device": "cpu", "micro_batch_tokens": 128},
        "seed": 3,
    }
    return TrainerConfig.model_validate(settings | changes)
