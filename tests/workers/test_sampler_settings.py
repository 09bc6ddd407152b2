"""What an engine is started with: settings that do not fit are refused before vLLM starts anything."""

from __future__ import annotations

import pytest

from learner.errors import InputError
from workers.config import SamplingConfig
from workers.sampler.settings import EngineConfig, batch_tokens, engine_arguments


def test_a_rank_runs_under_the_next_ceiling_that_vllm_accepts() -> None:
    assert engine_arguments(EngineConfig(model="m", lora_rank=12), on_cpu=True)["max_lora_rank"] == 16


def test_a_rank_above_all_ceilings_is_refused() -> None:
    with pytest.raises(InputError, match="ranks up to 512, not 600"):
        engine_arguments(EngineConfig(model="m", lora_rank=600), on_cpu=True)


@pytest.mark.parametrize(
    ("gpus", "on_cpu", "wanted"), [(1.0, True, "set it to 0"), (0.0, False, "set it to 1 or more")]
)
def test_a_vllm_of_the_other_kind_is_refused(gpus: float, on_cpu: bool, wanted: str) -> None:
    with pytest.raises(InputError, match=wanted):
        engine_arguments(EngineConfig(model="m", gpus=gpus), on_cpu=on_cpu)


def test_types_follow_the_device_unless_given() -> None:
    assert engine_arguments(EngineConfig(model="m"), on_cpu=True)["dtype"] == "float32"
    assert engine_arguments(EngineConfig(model="m", gpus=1), on_cpu=False)["dtype"] == "bfloat16"
    assert engine_arguments(EngineConfig(model="m", dtype="float16"), on_cpu=True)["dtype"] == "float16"


def test_the_output_layer_is_not_wrapped() -> None:
    assert not {"lm_head", "embed_tokens"} & set(
        engine_arguments(EngineConfig(model="m"), on_cpu=True)["lora_target_modules"]
    )


def test_whole_prompts_fit_into_one_step_on_the_cpu() -> None:
    assert engine_arguments(EngineConfig(model="m"), on_cpu=True)["enable_chunked_prefill"] is False
    assert batch_tokens(EngineConfig(model="m"), 131072) == 131072


@pytest.mark.parametrize(("answers", "shares"), [(2, (1, 1)), (4, (2, 2)), (5, (3, 2))])
def test_the_policy_writes_the_larger_half_beside_an_opponent(answers: int, shares: tuple[int, int]) -> None:
    sampling = SamplingConfig(answers=answers, opponent="start")
    assert [(share.version, share.answers) for share in sampling.shares(3, 0)] == list(zip((3, 0), shares, strict=True))
    assert [(share.version, share.answers) for share in sampling.shares(0, 0)] == [(0, answers)]
