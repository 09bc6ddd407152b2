"""Losses against the published check values, at the edges of the numbers, and whatever the split into parts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.config import ScheduleConfig
from learner.errors import InputError
from learner.objectives import PreferenceBatch, build_objective, objective_kinds
from learner.objectives.parameters import DpoParameters, Reference, SppoParameters
from learner.references import resolve_reference

SETTINGS: list[dict[str, Any]] = [
    {"kind": "dpo"},
    {"kind": "dpo", "label_smoothing": 0.2},
    {"kind": "dpo", "label_smoothing": 0.2, "robust": True},
    {"kind": "dpo", "length_normalized": True, "nll_weight": 0.5},
    {"kind": "sppo"},
    {"kind": "sppo", "beta": 0.1, "estimate": "pair", "reduction": "sum"},
    {"kind": "sppo", "beta": 0.1, "estimate": "pair", "probabilities": "raw", "baseline": 0.6},
    {"kind": "sppo", "estimate": "hard"},
]


def one(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([value], dtype=dtype)


def check_pair(dtype: torch.dtype = torch.float64) -> PreferenceBatch:
    """The base check example: a = 1, b = -0.5, lengths 5 and 4, Pw = .7, Pl = .35, P = .8."""
    values = [-10, -12, -11, -11.5, 5, 4, 0.7, 0.35, math.log(4)]
    return PreferenceBatch.from_pairs(*(one(value, dtype) for value in values))


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"kind": "dpo"}, 0.6209570478),
        ({"kind": "dpo", "label_smoothing": 0.1}, 0.6359570478),
        ({"kind": "dpo", "label_smoothing": 0.1, "robust": True}, 0.6022070478),
        ({"kind": "dpo", "length_normalized": True}, 0.6770292060),
        ({"kind": "dpo", "nll_weight": 1.0}, 2.6209570478),
        ({"kind": "sppo"}, 30975.625),
        ({"kind": "sppo", "beta": 0.1}, 1.0),
        ({"kind": "sppo", "reduction": "sum", "beta": 0.1}, 2.0),
        ({"kind": "sppo", "estimate": "pair"}, 89550.625),
        ({"kind": "sppo", "estimate": "pair", "beta": 0.1}, 5.125),
        ({"kind": "sppo", "estimate": "hard", "reduction": "sum", "beta": 0.1}, 36.25),
        ({"kind": "sppo", "estimate": "hard", "reduction": "sum"}, 498501.25),
    ],
)
def test_losses_take_the_published_check_values(parameters: dict[str, Any], expected: float) -> None:
    objective = build_objective(parameters)
    exact = objective(check_pair()).loss
    assert exact.dtype == torch.float64
    assert exact.item() == pytest.approx(expected, abs=1e-9, rel=1e-10)
    single = objective(check_pair(torch.float32)).loss
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected, abs=1e-5, rel=1e-6)


def test_dpo_is_log_2_where_policy_and_reference_agree() -> None:
    batch = PreferenceBatch.from_pairs(one(-3), one(-4), one(-3), one(-4))
    assert build_objective({"kind": "dpo"})(batch).loss.item() == pytest.approx(math.log(2), abs=1e-12)


def random_batch(rows: int, answers: int, seed: int, dtype: torch.dtype = torch.float64) -> PreferenceBatch:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    mask = torch.rand(rows, answers, generator=generator) > 0.15
    return PreferenceBatch(
        policy_logps=draw(rows, answers).mul(5).requires_grad_(),
        mask=mask,
        reference_logps=draw(rows, answers) * 5,
        lengths=torch.randint(1, 9, (rows, answers), generator=generator).to(dtype),
        win_probabilities=torch.sigmoid(draw(rows, answers)),
        pair_logits=draw(rows, answers, answers),
        scores=draw(rows, answers),
    )


def part(batch: PreferenceBatch, rows: Tensor, policy_logps: Tensor) -> PreferenceBatch:
    fields = ("mask", "reference_logps", "lengths", "win_probabilities", "pair_logits", "scores")
    return PreferenceBatch(policy_logps=policy_logps[rows], **{name: getattr(batch, name)[rows] for name in fields})


@settings(max_examples=25)
@given(
    parameters=st.sampled_from(SETTINGS),
    rows=st.integers(1, 9),
    seed=st.integers(0, 10_000),
    shares=st.integers(1, 4),
)
def test_no_split_into_parts_changes_loss_gradient_or_metrics(
    parameters: dict[str, Any], rows: int, seed: int, shares: int
) -> None:
    objective = build_objective(parameters)
    batch = random_batch(rows, 2, seed)
    whole = objective(batch)
    expected = torch.autograd.grad(whole.loss, batch.policy_logps)[0]
    usable = objective.usable(batch)
    stats = objective.prepare(objective.margins(batch)[usable])
    leaf = batch.policy_logps.detach().requires_grad_()
    loss, metrics = torch.zeros((), dtype=torch.float64), dict.fromkeys(whole.metrics, 0.0)
    for rows_of_part in torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).chunk(shares):
        out = objective(part(batch, rows_of_part, leaf), stats)
        loss = loss + out.loss / max(1, stats.count)
        metrics = {name: metrics[name] + float(value) / max(1, stats.count) for name, value in out.metrics.items()}
    torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(loss, whole.loss, atol=1e-9, rtol=1e-9)
    assert metrics == pytest.approx({name: float(value) for name, value in whole.metrics.items()}, abs=1e-9)


@pytest.mark.parametrize("parameters", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("ratio", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_extreme_values_give_finite_losses_and_gradients(
    parameters: dict[str, Any], dtype: torch.dtype, ratio: float, probability: float
) -> None:
    chosen = one(ratio - 5, dtype).requires_grad_()
    rejected = one(-5, dtype).requires_grad_()
    logit = one({0.0: -1e4, 0.5: 0.0, 1.0: 1e4}[probability], dtype)
    p = one(probability, dtype)
    minus_five, length = one(-5, dtype), one(3, dtype)
    batch = PreferenceBatch.from_pairs(
        chosen, rejected, minus_five, minus_five, length, length, p, 1 - p, logit, mean_entropy=p
    )
    out = build_objective(parameters)(batch)
    gradients = torch.autograd.grad(out.loss, [chosen, rejected])
    assert out.loss.dtype == dtype
    assert all(torch.isfinite(value).all() for value in (out.loss, out.per_example, *gradients, *out.metrics.values()))


@settings(max_examples=20)
@given(parameters=st.sampled_from(SETTINGS), seed=st.integers(0, 1000))
def test_gradients_equal_finite_differences(parameters: dict[str, Any], seed: int) -> None:
    objective = build_objective(parameters)
    batch = random_batch(3, 2, seed)
    gradient = torch.autograd.grad(objective(batch).loss, batch.policy_logps)[0]
    step = 1e-5
    for row in range(3):
        for column in range(2):
            shift = torch.zeros(3, 2, dtype=torch.float64)
            shift[row, column] = step
            up, down = (
                objective(part(batch, torch.arange(3), batch.policy_logps.detach() + sign * shift)).loss
                for sign in (1, -1)
            )
            difference = float(up - down) / (2 * step)
            assert gradient[row, column].item() == pytest.approx(difference, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("parameters", SETTINGS)
def test_a_batch_without_answers_has_loss_0_attached_to_the_graph_and_ignores_what_stands_there(
    parameters: dict[str, Any],
) -> None:
    nan = torch.full((2, 2), math.nan, dtype=torch.float64)
    logps = nan.clone().requires_grad_()
    batch = PreferenceBatch(
        policy_logps=logps,
        mask=torch.zeros(2, 2, dtype=torch.bool),
        reference_logps=nan,
        lengths=nan,
        win_probabilities=nan,
        pair_logits=torch.full((2, 2, 2), math.nan, dtype=torch.float64),
    )
    out = build_objective(parameters)(batch)
    assert out.loss.item() == 0
    assert torch.autograd.grad(out.loss, logps)[0].tolist() == [[0, 0], [0, 0]]
    assert all(float(value) == 0 for value in out.metrics.values())


@pytest.mark.parametrize("parameters", SETTINGS)
def test_an_example_with_one_answer_left_does_not_disturb_the_others(parameters: dict[str, Any]) -> None:
    whole = check_pair()
    fields = ("policy_logps", "reference_logps", "lengths", "win_probabilities", "pair_logits")
    values = {name: torch.cat([getattr(whole, name)] * 2) for name in fields}
    values["policy_logps"][1, 1] = math.nan
    batch = PreferenceBatch(mask=torch.tensor([[True, True], [True, False]]), **values)
    objective = build_objective(parameters)
    out = objective(batch)
    assert torch.isfinite(out.loss)
    assert out.per_example[0].item() == pytest.approx(objective(whole).loss.item(), rel=1e-12)
    if parameters["kind"] == "dpo" or parameters.get("estimate", "soft") != "soft":
        assert out.per_example[1].item() == 0
        assert out.loss.item() == pytest.approx(out.per_example[0].item(), rel=1e-12)


def test_sppo_with_all_answers_is_the_mean_over_those_that_are_there() -> None:
    batch = PreferenceBatch(
        policy_logps=torch.tensor([[1.0, 2.0, math.nan]], dtype=torch.float64),
        mask=torch.tensor([[True, True, False]]),
        reference_logps=torch.zeros(1, 3, dtype=torch.float64),
        win_probabilities=torch.tensor([[0.8, 0.3, 0.9]], dtype=torch.float64),
    )
    objective = build_objective({"kind": "sppo", "beta": 0.1, "answers": "all"})
    assert objective(batch).loss.item() == pytest.approx(((1 - 3) ** 2 + (2 + 2) ** 2) / 2)


def test_hard_and_pair_estimates_compare_the_answers_that_are_there() -> None:
    mask = torch.tensor([[True, False, True, True]])
    logits = torch.full((1, 4, 4), math.nan, dtype=torch.float64)
    for i, j, value in [(0, 2, 2.0), (2, 0, -1.0), (0, 3, 3.0), (3, 0, -3.0), (2, 3, 1.0), (3, 2, 1.0)]:
        logits[0, i, j] = value
    zeros = torch.zeros(1, 4, dtype=torch.float64)
    batch = PreferenceBatch(policy_logps=zeros, mask=mask, reference_logps=zeros, pair_logits=logits)
    hard, pair, raw = (
        build_objective({"kind": "sppo", "estimate": estimate, "probabilities": mode}).win_estimates(batch)[0, mask[0]]  # type: ignore[attr-defined]
        for estimate, mode in (("hard", "paper"), ("pair", "paper"), ("pair", "raw"))
    )
    assert hard.tolist() == [1.0, 0.5, 0.0]
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    assert pair.tolist() == pytest.approx(
        [(sigmoid(1.5) + sigmoid(3)) / 2, (sigmoid(-1.5) + 0.5) / 2, (sigmoid(-3) + 0.5) / 2]
    )
    assert raw[1].item() == pytest.approx((sigmoid(-1) + sigmoid(1)) / 2)


def test_objectives_say_what_they_read_and_miss_it_by_name() -> None:
    assert build_objective({"kind": "dpo"}).requires == {"reference_logps"}
    assert build_objective({"kind": "sppo"}).requires == {"reference_logps", "win_probabilities"}
    assert build_objective({"kind": "sppo", "estimate": "hard"}).requires == {"reference_logps"}
    with pytest.raises(InputError, match="win_probabilities"):
        build_objective({"kind": "sppo"})(PreferenceBatch.from_pairs(one(-1), one(-2), one(-1), one(-2)))


def test_the_registry_builds_from_mappings_and_models_and_refuses_the_rest() -> None:
    assert {"dpo", "sppo"} <= set(objective_kinds())
    assert (
        build_objective(DpoParameters(beta=0.2)).parameters == build_objective({"kind": "dpo", "beta": 0.2}).parameters
    )
    for wrong in ({"kind": "dpo", "bta": 1}, {"kind": "dpo", "beta": 0}, {"kind": "ppo"}, {}):
        with pytest.raises(InputError, match="objective"):
            build_objective(wrong)


def test_objectives_without_running_statistics_keep_no_state() -> None:
    objective = build_objective({"kind": "sppo"})
    objective.load_state_dict(objective.state_dict())
    objective.eval()
    assert objective.state_dict() == {}
    with pytest.raises(InputError, match="momentum"):
        objective.load_state_dict({"momentum": 1.0})


def test_metrics_are_in_nats_and_the_margin_is_first_minus_last() -> None:
    metrics = build_objective({"kind": "dpo"})(check_pair()).metrics
    assert {name: float(value) for name, value in metrics.items()} == {
        "margin": 1.5,
        "accuracy": 1.0,
        "mean_log_ratio": 0.25,
    }


def test_batches_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(InputError, match="lengths must be of shape"):
        PreferenceBatch(policy_logps=torch.zeros(2, 2), lengths=torch.zeros(2))
    with pytest.raises(InputError, match="for the chosen and for the rejected"):
        PreferenceBatch.from_pairs(one(-1), one(-2), one(-1))
    with pytest.raises(InputError, match="takes pairs"):
        zeros = torch.zeros(1, 3)
        build_objective({"kind": "dpo"})(PreferenceBatch(policy_logps=zeros, reference_logps=zeros))


ROUNDS, ONLINE = ScheduleConfig(), ScheduleConfig(mode="online", max_staleness=2)


@pytest.mark.parametrize(
    ("parameters", "schedule", "expected"),
    [
        (SppoParameters(), ROUNDS, "round"),
        (SppoParameters(), ONLINE, "behaviour"),
        (SppoParameters(reference="behaviour"), ROUNDS, "behaviour"),
        (DpoParameters(), ONLINE, "start"),
        (DpoParameters(reference="round"), ONLINE, "round"),
    ],
)
def test_references_resolve(parameters: Any, schedule: ScheduleConfig, expected: str) -> None:
    assert resolve_reference(parameters, schedule) == expected


@pytest.mark.parametrize(("reference", "schedule"), [("start", ROUNDS), ("start", ONLINE), ("round", ONLINE)])
def test_references_that_make_no_sense_for_sppo_are_refused(reference: Reference, schedule: ScheduleConfig) -> None:
    with pytest.raises(InputError, match=f"objective.reference: {reference}"):
        resolve_reference(SppoParameters(reference=reference), schedule)
