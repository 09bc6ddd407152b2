"""The canary passes a sampler of the version, and never one of another."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.canary import CanaryOutcome, judge
from learner.canary_texts import MAX_CANDIDATES, MAX_TOKENS, CanaryCandidates, choose_canary
from learner.errors import InputError
from learner.records import CanaryText, VersionManifest

NOISE = 2e-5


def manifest(version: int, *texts: tuple[list[float], list[float], list[float] | None]) -> VersionManifest:
    """A version whose texts carry (current, base, previous) log-probabilities."""
    return VersionManifest(
        job_id="job",
        module="fast",
        version=version,
        learner_step=version,
        digest="d",
        files={},
        base_model="m",
        rank=4,
        canary=tuple(
            CanaryText(
                token_ids=tuple(range(len(current) + 1)),
                current=tuple(current),
                base=tuple(base),
                previous=None if previous is None else tuple(previous),
            )
            for current, base, previous in texts
        ),
        created_at=datetime(2025, 1, 1, tzinfo=UTC),
    )


logps = st.lists(st.floats(-12, 0), min_size=6, max_size=6)
noises = st.lists(st.floats(-1, 1), min_size=6, max_size=6)


@given(logps, logps, logps, noises, st.sampled_from([NOISE, 5e-2]))
def test_a_sampler_of_the_version_passes_or_cannot_be_told_but_never_fails(
    current: list[float], base: list[float], previous: list[float], noise: list[float], scale: float
) -> None:
    measured = [x + scale * n for x, n in zip(current, noise, strict=True)]
    verdict = judge(manifest(3, (current, base, previous)), [measured], scale)
    separated = min(verdict.separation_base, verdict.separation_previous or 0) > 3.01 * verdict.noise
    assert verdict.outcome is (CanaryOutcome.PASSED if separated else CanaryOutcome.CANNOT_TELL) or not separated
    assert verdict.outcome is not CanaryOutcome.FAILED
    if separated:
        assert verdict.passed


@given(logps, logps, logps, noises, st.sampled_from([NOISE, 5e-2]), st.booleans())
def test_a_sampler_of_the_version_before_or_of_the_base_never_passes(
    current: list[float], base: list[float], previous: list[float], noise: list[float], scale: float, stale: bool
) -> None:
    served = previous if stale else base
    measured = [x + scale * n for x, n in zip(served, noise, strict=True)]
    verdict = judge(manifest(3, (current, base, previous)), [measured], scale)
    assert not verdict.passed
    separation = verdict.separation_previous if stale else verdict.separation_base
    if separation is not None and separation > 3.01 * verdict.noise:
        assert verdict.outcome is CanaryOutcome.FAILED


@given(logps, logps, logps, logps, st.floats(1e-6, 1))
def test_what_is_measured_nearer_to_another_version_never_passes(
    current: list[float], base: list[float], previous: list[float], measured: list[float], noise: float
) -> None:
    verdict = judge(manifest(3, (current, base, previous)), [measured], noise)
    nearest = min(verdict.distance_base, verdict.distance_previous or 0)
    if nearest <= verdict.distance_current:
        assert not verdict.passed
    if verdict.passed:
        assert verdict.separation_base >= 3 * verdict.noise
        assert (verdict.separation_previous or 0) >= 3 * verdict.noise


def test_versions_closer_than_the_noise_cannot_be_told_apart() -> None:
    near = manifest(2, ([-1.0, -2.0], [-3.0, -4.0], [-1.0, -2.0 + NOISE]))
    verdict = judge(near, [[-1.0, -2.0]], NOISE)
    assert verdict.outcome is CanaryOutcome.CANNOT_TELL
    assert "the version before" in verdict.reason
    assert judge(near, [[-3.0, -4.0]], NOISE).outcome is CanaryOutcome.FAILED


def test_version_zero_of_a_bare_model_must_agree() -> None:
    bare = manifest(0, ([-1.0, -2.0], [-1.0, -2.0], None))
    assert judge(bare, [[-1.0001, -2.0]], NOISE).passed
    assert judge(bare, [[-1.01, -2.0]], NOISE).outcome is CanaryOutcome.FAILED
    assert judge(bare, [[-1.01, -2.0]], NOISE, tolerance_per_token=0.1).passed
    assert judge(bare, [[-1.01, -2.0]], 5e-2).passed


def test_version_zero_that_began_from_an_adapter_is_held_against_the_base() -> None:
    started = manifest(0, ([-1.0, -2.0], [-3.0, -4.0], None))
    assert judge(started, [[-1.0, -2.0]], NOISE).passed
    assert judge(started, [[-3.0, -4.0]], NOISE).outcome is CanaryOutcome.FAILED


def test_nothing_measured_proves_nothing() -> None:
    assert judge(manifest(1), [], NOISE).outcome is CanaryOutcome.CANNOT_TELL
    assert judge(manifest(0), [], NOISE).outcome is CanaryOutcome.CANNOT_TELL
    unrecorded = manifest(2, ([-1.0], [-3.0], None))
    assert judge(unrecorded, [[-1.0]], NOISE).outcome is CanaryOutcome.CANNOT_TELL


def test_numbers_that_are_not_finite_fail_and_the_wrong_count_is_an_error() -> None:
    text = manifest(1, ([-1.0, -2.0], [-3.0, -4.0], [-2.0, -3.0]))
    assert judge(text, [[float("nan"), -2.0]], NOISE).outcome is CanaryOutcome.FAILED
    with pytest.raises(InputError, match="measure every token"):
        judge(text, [[-1.0]], NOISE)
    with pytest.raises(InputError, match="noise_per_token"):
        judge(text, [[-1.0, -2.0]], 0.0)


def test_the_verdict_shows_its_numbers() -> None:
    verdict = judge(manifest(1, ([-1.0, -2.0], [-3.0, -4.0], [-2.0, -2.0])), [[-1.0, -2.5]], NOISE)
    assert verdict.as_metrics() == {
        "canary_distance_current": 0.5,
        "canary_distance_previous": 1.5,
        "canary_distance_base": 3.5,
        "canary_separation_previous": 1.0,
        "canary_separation_base": 4.0,
        "canary_noise": 4e-5,
        "canary_tokens": 2.0,
    }


def test_candidates_are_the_newest_texts_without_doubles_and_cut() -> None:
    candidates = CanaryCandidates([(1,), (1, 2), (3, 4), (1, 2)])
    assert candidates.texts == [(3, 4), (1, 2)]
    candidates.add([tuple(range(1000))])
    assert len(candidates.texts[-1]) == MAX_TOKENS
    candidates.add([(i, i) for i in range(100)])
    assert len(candidates.texts) == MAX_CANDIDATES


def test_the_texts_on_which_versions_differ_most_are_chosen() -> None:
    texts = [(1, i) for i in range(10)]
    current = [[-1.0 - i] for i in range(10)]
    chosen = choose_canary(texts, current, [[0.0]] * 10, [[-1.0]] * 10)
    assert [text.token_ids[1] for text in chosen] == [9, 8, 7, 6, 5, 4, 3, 2]
