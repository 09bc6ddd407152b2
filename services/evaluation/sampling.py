"""Lets sides write their answers with the sampler's engine, in this process and without Ray; and keeps the best of several by PairRM.

Sides on the same base model share one engine. An engine is closed before the next one starts, and before a scorer's model is loaded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from learner.digests import adapter_digest, sha256
from learner.errors import InputError
from learner.preference import win_matrix, win_probabilities
from learner.records import FileEntry, Prompt, SamplingParameters, VersionManifest
from learner.seeds import derive_seed
from services.evaluation.sides import ModelSide
from workers.config import PairRMScorer
from workers.errors import WorkerError
from workers.sampler.engine import EngineConfig, GeneratedAnswer, SamplerEngine
from workers.sampler.errors import AdapterRejected
from workers.scorers.base import Comparison, PreferenceScorer

Progress = Callable[[str, int, int], None]
"""Called with what is done, how many of it, and of how many."""

PLAIN_RANK = 8
"""Rank for which an engine reserves room where no side has an adapter."""


@dataclass(frozen=True)
class EngineSettings:
    """What the engines may use. ``gpus`` 0 means vLLM's CPU backend."""

    gpus: int
    threads: int
    kv_cache_gib: float
    max_running_requests: int
    start_timeout_seconds: float
    cache_dir: Path


@dataclass(frozen=True)
class Writer:
    """A side that is to write.

    Attributes:
        role: candidate or baseline; its seeds derive from it, so that a model can play itself.
        token_ids: of each prompt, as the side's model reads it.
        answers: how many to each prompt.
    """

    role: str
    side: ModelSide
    token_ids: Sequence[tuple[int, ...]]
    answers: int


@dataclass(frozen=True)
class Written:
    """A side's answers to each prompt, and the share of all of them that the token limit cut off."""

    answers: tuple[tuple[str, ...], ...]
    truncated_share: float


def write_all(
    writers: Sequence[Writer],
    prompts: Sequence[Prompt],
    sampling: SamplingParameters,
    settings: EngineSettings,
    *,
    seed: int,
    progress: Progress,
) -> dict[str, Written]:
    """Every writer's answers, by its role.

    Raises:
        InputError: vLLM refuses a model, an adapter or the settings.
        WorkerError: vLLM's process died.
    """
    together: dict[str, list[Writer]] = {}
    for writer in writers:
        together.setdefault(writer.side.policy.model_dump_json(exclude={"adapter"}), []).append(writer)
    result: dict[str, Written] = {}
    for group in together.values():
        result |= asyncio.run(_write(group, prompts, sampling, settings, seed, progress))
    return result


def best_of(
    written: Written, prompts: Sequence[Prompt], scorer: PreferenceScorer, role: str, progress: Progress
) -> list[str]:
    """Of each prompt's answers the one with the highest mean win probability against the others; of equal ones the first."""
    kept = []
    for number, (prompt, answers) in enumerate(zip(prompts, written.answers, strict=True)):
        (result,) = scorer.score([Comparison(prompt, answers)])
        kept.append(answers[int(np.argmax(win_probabilities(win_matrix(result.ordered_logits))))])
        progress(f"best of {len(answers)} ({role})", number + 1, len(prompts))
    return kept


def best_of_scorer(name: str) -> PairRMScorer:
    """The PairRM that picks the best answers."""
    folder = Path(name).expanduser()
    return PairRMScorer(model=str(folder.resolve()) if folder.is_dir() else name)


async def _write(
    writers: Sequence[Writer],
    prompts: Sequence[Prompt],
    sampling: SamplingParameters,
    settings: EngineSettings,
    seed: int,
    progress: Progress,
) -> dict[str, Written]:
    adapters = {place: writer.side for place, writer in enumerate(writers) if writer.side.adapter is not None}
    engine = SamplerEngine(_engine_config(writers[0].side, adapters, settings))
    what = f"starting vLLM for {writers[0].side.policy.model}"
    progress(what, 0, 1)
    try:
        await asyncio.wait_for(engine.start(), settings.start_timeout_seconds)
        progress(what, 1, 1)
        for place, side in adapters.items():
            files = side.adapter or {}
            await engine.load_version(_manifest(place, side, files), files)
        result = {}
        for place, writer in enumerate(writers):
            result[writer.role] = await _answers(
                engine, writer, place if place in adapters else None, prompts, sampling, seed, progress
            )
        return result
    except TimeoutError:
        raise InputError(
            f"vLLM did not start within {settings.start_timeout_seconds:g} s; raise --start-timeout, or look at its messages"
        ) from None
    except InputError as error:
        raise InputError(str(error).replace("resources.sampler.gpus", "--gpus")) from error
    except AdapterRejected as error:
        raise InputError(f"an adapter cannot be served: {error}") from None
    except (ValueError, RuntimeError, OSError) as error:
        kind = InputError if isinstance(error, ValueError) else WorkerError  # what was asked for, or the machinery
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise kind(f"{writers[0].side.policy.model}: vLLM could not write the answers: {reason}") from error
    finally:
        await engine.close()


async def _answers(
    engine: SamplerEngine,
    writer: Writer,
    version: int | None,
    prompts: Sequence[Prompt],
    sampling: SamplingParameters,
    seed: int,
    progress: Progress,
) -> Written:
    what, done = f"answers ({writer.role})", 0

    async def one(number: int) -> list[GeneratedAnswer]:
        nonlocal done
        answers = await engine.generate(
            request_id=f"{writer.role}-{number}",
            prompt_token_ids=writer.token_ids[number],
            version=version,
            sampling=sampling,
            seed=derive_seed(seed, "evaluate", writer.role, prompts[number].id),
            answers=writer.answers,
        )
        done += 1
        progress(what, done, len(prompts))
        return answers

    progress(what, 0, len(prompts))
    written = await asyncio.gather(*(one(number) for number in range(len(prompts))))
    cut = [answer.finish_reason.value == "length" for answers in written for answer in answers]
    return Written(tuple(tuple(answer.text for answer in answers) for answers in written), sum(cut) / len(cut))


def _engine_config(side: ModelSide, adapters: Mapping[int, ModelSide], settings: EngineSettings) -> EngineConfig:
    policy = side.policy
    return EngineConfig(
        model=policy.model,
        revision=policy.revision,
        dtype=policy.dtype,
        max_model_len=policy.max_context_tokens,
        lora_rank=max((adapter.rank for adapter in adapters.values()), default=PLAIN_RANK),
        lora_slots=max(1, len(adapters)),
        cpu_lora_slots=max(1, len(adapters)),
        max_running_requests=settings.max_running_requests,
        threads=settings.threads,
        kv_cache_gib=settings.kv_cache_gib,
        tensor_parallel_size=max(1, settings.gpus),
        cache_dir=settings.cache_dir,
        deterministic=True,
        gpus=settings.gpus,
    )


def _manifest(place: int, side: ModelSide, files: Mapping[str, bytes]) -> VersionManifest:
    """The adapter as a version of its own, so that two jobs' versions of one number do not meet."""
    return VersionManifest(
        job_id="evaluate",
        module="fast",
        version=place,
        learner_step=0,
        digest=adapter_digest(files),
        files={name: FileEntry(sha256=sha256(data), bytes=len(data)) for name, data in files.items()},
        base_model=side.policy.model,
        rank=side.rank,
        created_at=datetime.now(UTC),
    )
