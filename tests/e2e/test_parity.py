"""The sampler and the learner give the same log-probabilities, family by family, with an adapter on and without (rule 4).

Random weights in small shapes. Between them the cases have tied and untied output layers, several EOS ids, a pad that is the EOS, a
vocabulary beyond 128k, sliding windows and capped logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from learner.config import AdapterConfig, LearnerConfig, PolicyConfig
from learner.likelihood import collate
from learner.policy import Policy
from learner.records import FinishReason, SamplingParameters
from tests.workers import sampler_world as world
from workers.sampler.engine import EngineConfig, GeneratedAnswer, SamplerEngine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TOLERANCE = 1e-3
END, OTHER_END = 258, 259
TEXTS = [[257, *((11 * place + 5 * text) % 256 for place in range(30 + 9 * text))] for text in range(4)]
PROMPTS = [text[:10] for text in TEXTS]
SAMPLING = SamplingParameters(temperature=0.8, top_p=0.95, top_k=0, max_tokens=20)


@pytest.fixture(scope="module", autouse=True)
def quick_starts() -> Iterator[None]:
    with world.one_import_of_vllm():
        yield


@dataclass(frozen=True)
class Case:
    """A family of models, in a shape of its own."""

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    pad: str = "<pad>"
    ends: tuple[int, ...] = (END,)


CASES = {
    "llama, untied, pad is EOS": Case("llama", {"pad_token_id": END}, pad="</s>"),
    "llama, tied, 130k vocabulary": Case("llama", {"tie_word_embeddings": True, "vocab_size": 130_000}),
    "mistral, sliding window": Case("mistral", {"sliding_window": 16}),
    "qwen2, tied, several EOS": Case("qwen2", {"tie_word_embeddings": True}, ends=(END, OTHER_END)),
    "qwen3, untied": Case("qwen3"),
    "gemma": Case("gemma", {"tie_word_embeddings": True}),
    "gemma2": Case(
        "gemma2",
        {
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 32,
            "sliding_window": 16,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": Case(
        "gemma3_text",
        {"tie_word_embeddings": True, "query_pre_attn_scalar": 32, "sliding_window": 16, "num_hidden_layers": 6},
    ),
}


def trained_policy(model: Path) -> Policy:
    """The learner's policy with an adapter that changes what it says."""
    torch.set_num_threads(1)
    policy = Policy.load(
        PolicyConfig(model=str(model), dtype="float32"),
        AdapterConfig(rank=8, alpha=16),
        LearnerConfig(device="cpu"),
        seed=1,
    )
    generator = torch.Generator().manual_seed(2)
    policy.load_state(
        {
            name: torch.randn(weight.shape, generator=generator) * 0.1 if "lora_B" in name else weight
            for name, weight in policy.state().items()
        }
    )
    return policy


def learner_logprobs(policy: Policy, prompts: list[list[int]], answers: list[list[int]]) -> list[list[float]]:
    batch = collate(list(zip(prompts, answers, strict=True)), policy.device)
    return [part.tolist() for part in torch.split(policy.likelihood.token_logps(batch), list(batch.counts))]


def furthest(found: list[list[float]], expected: list[list[float]]) -> float:
    return max(abs(x - y) for a, b in zip(found, expected, strict=True) for x, y in zip(a, b, strict=True))


async def sampled(
    model: Path, policy: Policy, case: Case
) -> tuple[list[list[float]], list[list[float]], list[GeneratedAnswer]]:
    """What a sampler says: log-probabilities under the base and under the adapter, and an answer to each prompt."""
    files = policy.files()
    engine = SamplerEngine(
        EngineConfig(model=str(model), lora_rank=8, lora_slots=1, cpu_lora_slots=1, kv_cache_gib=0.1)
    )
    try:
        info = await engine.start()
        assert info.stop_token_ids == case.ends
        manifest = world.manifest(0, files)
        assert await engine.load_version(manifest, files) == manifest.digest
        base, adapted = await engine.text_logprobs(TEXTS, None), await engine.text_logprobs(TEXTS, 0)
        answers = [
            (
                await engine.generate(
                    request_id=str(number),
                    prompt_token_ids=prompt,
                    version=0,
                    sampling=SAMPLING,
                    seed=number,
                    answers=1,
                )
            )[0]
            for number, prompt in enumerate(PROMPTS)
        ]
    finally:
        await engine.close()
    return base, adapted, answers


@pytest.mark.parametrize("name", CASES)
async def test_sampler_and_learner_agree_on_every_token_of(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    ends = list(case.ends) if len(case.ends) > 1 else case.ends[0]
    model = world.tiny_model(tmp_path, case.kind, pad=case.pad, generation={"eos_token_id": ends}, **case.settings)
    policy = trained_policy(model)
    base, adapted, answers = await sampled(model, policy, case)

    firsts, rests = [text[:1] for text in TEXTS], [text[1:] for text in TEXTS]
    with policy.evaluating():
        expected = learner_logprobs(policy, firsts, rests)
        expected_answers = learner_logprobs(policy, PROMPTS, [list(answer.token_ids) for answer in answers])
    with policy.reference(None):
        expected_base = learner_logprobs(policy, firsts, rests)
    assert furthest(expected, expected_base) > 0.05, "the adapter says nothing; the test would too"
    assert furthest(base, expected_base) < TOLERANCE
    assert furthest(adapted, expected) < TOLERANCE
    assert furthest([list(answer.logprobs) for answer in answers], expected_answers) < TOLERANCE
    for answer in answers:
        assert (answer.finish_reason is FinishReason.STOP) == (answer.token_ids[-1] in case.ends)
