"""Losses against the published check values, at the edges of the numbers, and whatever the split into parts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.check_values import CHECK_VALUES, EXACT, SINGLE, CheckValue, pairs
from learner.config import ScheduleConfig
from learner.did import sampled_information_entropy
from learner.errors import InputError
from learner.objectives import BatchStatistics, Objective, PreferenceBatch, build_objective, objective_kinds
from learner.objectives.parameters import DpoParameters, Reference, SppoParameters
from learner.references import resolve_reference


def settings_of_all_kinds() -> list[dict[str, Any]]:
    """Every kind at its defaults, every form that has code of its own, and wrappers round each other's inner kinds."""
    variants: dict[str, list[dict[str, Any]]] = {
        "sppo": [
            {},
            {"beta": 0.1, "estimate": "pair", "reduction": "sum"},
            {"beta": 0.1, "estimate": "pair", "probabilities": "raw", "baseline": 0.6},
            {"estimate": "hard"},
        ],
        "dpo": [
            {},
            {"label_smoothing": 0.2},
            {"label_smoothing": 0.2, "robust": True},
            {"length_normalized": True, "nll_weight": 0.5},
        ],
        "ipo": [{}, {"length_normalized": True}],
        "kto-pair": [{}, {"detach_kl": False}],
        "simpo": [{}, {"label_smoothing": 0.1, "nll_weight": 0.3}],
        "alpha-dpo": [{}, {"length_normalized": False}],
        "odpo": [{}, {"offset": "log1p"}, {"offset": "identity"}],
        "mallows": [{}, {"form": "phi"}, {"form": "ipo"}],
        "tdpo": [{}, {"version": 1}],
        "f-dpo": [{"divergence": divergence} for divergence in ("reverse-kl", "forward-kl", "js", "alpha")],
        "beta-dpo": [{}, {"bias_correction": True, "inner": {"kind": "simpo"}}, {"filter_share": 0.5}],
        "dr-dpo": [{}, {"inner": {"kind": "ipo"}, "beta_prime": 5.0}, {"inner": {"kind": "nca"}, "beta_prime": 0.5}],
        "wpo": [{}, {"clamp": False, "inner": {"kind": "hinge"}}],
        "chase": [{}, {"inner": {"kind": "dr-dpo"}}, {"inner": {"kind": "beta-dpo"}, "slow_term": "reported"}],
    }
    return [{"kind": kind, **variant} for kind in objective_kinds() for variant in variants.get(kind, [{}])]


SETTINGS = settings_of_all_kinds()


def one(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([value], dtype=dtype)


def check_pair(dtype: torch.dtype = torch.float64) -> PreferenceBatch:
    """The base check example, with every field that any kind reads."""
    return pairs(
        dtype,
        chosen_token_kl=0.05,
        rejected_token_kl=0.1,
        mean_entropy=0.3,
        other_chosen_logps=-10.5,
        other_rejected_logps=-11.8,
        chosen_squared_probability_log=-0.1,
        rejected_squared_probability_log=-0.3,
    )


@pytest.mark.parametrize("check", CHECK_VALUES, ids=lambda check: check.name)
def test_losses_take_the_published_check_values(check: CheckValue) -> None:
    assert check.error(torch.float64) <= EXACT
    assert check.error(torch.float32) <= SINGLE


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_losses_keep_the_precision_of_their_input(dtype: torch.dtype) -> None:
    for parameters in SETTINGS:
        assert build_objective(parameters)(check_pair(dtype)).loss.dtype == dtype, parameters


def test_every_kind_has_a_check_value() -> None:
    names = " ".join(check.name for check in CHECK_VALUES)
    assert [kind for kind in objective_kinds() if kind not in names] == []


def test_dpo_is_log_2_where_policy_and_reference_agree() -> None:
    batch = PreferenceBatch.from_pairs(one(-3), one(-4), one(-3), one(-4))
    assert build_objective({"kind": "dpo"})(batch).loss.item() == pytest.approx(math.log(2), abs=1e-12)


FIELDS = (
    "mask",
    "reference_logps",
    "lengths",
    "win_probabilities",
    "pair_logits",
    "scores",
    "token_kl",
    "mean_entropy",
    "other_logps",
    "squared_probability_logs",
    "token_kl_products",
    "from_opponent",
)


def random_batch(
    rows: int, answers: int, seed: int, dtype: torch.dtype = torch.float64, missing: float = 0.15, scale: float = 5.0
) -> PreferenceBatch:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    mask = torch.rand(rows, answers, generator=generator) > missing
    policy = draw(rows, answers).mul(scale).requires_grad_()
    return PreferenceBatch(
        policy_logps=policy,
        mask=mask,
        reference_logps=draw(rows, answers) * scale,
        lengths=torch.randint(1, 9, (rows, answers), generator=generator).to(dtype),
        win_probabilities=torch.sigmoid(draw(rows, answers)),
        pair_logits=draw(rows, answers, answers),
        scores=draw(rows, answers),
        token_kl=draw(rows, answers).abs(),
        mean_entropy=torch.sigmoid(draw(rows, answers)),
        other_logps=draw(rows, answers) * scale,
        squared_probability_logs=draw(rows, answers) * 0.3,
        token_kl_products=draw(rows, answers),
        from_opponent=torch.rand(rows, answers, generator=generator) > 0.5,
    )


def part(batch: PreferenceBatch, rows: Tensor, policy_logps: Tensor) -> PreferenceBatch:
    return PreferenceBatch(policy_logps=policy_logps[rows], **{name: getattr(batch, name)[rows] for name in FIELDS})


def fresh(parameters: dict[str, Any]) -> Objective:
    """The objective after a few batches, so that running statistics are not at their start."""
    objective = build_objective(parameters)
    for seed in range(3):
        objective(random_batch(6, 2, 900 + seed))
    return objective


@settings(max_examples=150)
@given(
    parameters=st.sampled_from(SETTINGS),
    rows=st.integers(1, 9),
    seed=st.integers(0, 10_000),
    shares=st.integers(1, 4),
    numbered=st.booleans(),
)
def test_no_split_into_parts_changes_loss_gradient_or_metrics(
    parameters: dict[str, Any], rows: int, seed: int, shares: int, numbered: bool
) -> None:
    objective, again = fresh(parameters), fresh(parameters)
    batch = random_batch(rows, 2, seed)
    whole = objective(batch)
    expected = torch.autograd.grad(whole.loss, batch.policy_logps)[0]
    objective = again
    usable = objective.usable(batch)
    stats = objective.prepare(objective.margins(batch)[usable])
    positions = usable.long().cumsum(0) - 1
    leaf = batch.policy_logps.detach().requires_grad_()
    loss, metrics = torch.zeros((), dtype=torch.float64), dict.fromkeys(whole.metrics, 0.0)
    for rows_of_part in torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).chunk(shares):
        micro_batch = part(batch, rows_of_part, leaf)
        if numbered:
            micro_batch = replace(micro_batch, positions=positions[rows_of_part])
        out = objective(micro_batch, stats)
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
        chosen,
        rejected,
        minus_five,
        minus_five,
        length,
        length,
        p,
        1 - p,
        logit,
        chosen_token_kl=(chosen - rejected).abs(),
        rejected_token_kl=(chosen - rejected).abs() / 2,
        mean_entropy=p,
        other_chosen_logps=rejected.detach(),
        other_rejected_logps=chosen.detach(),
        chosen_squared_probability_log=chosen.detach(),
        rejected_squared_probability_log=rejected.detach(),
    )
    out = build_objective(parameters)(batch)
    gradients = torch.autograd.grad(out.loss, [chosen, rejected])
    assert out.loss.dtype == dtype
    assert all(torch.isfinite(value).all() for value in (out.loss, out.per_example, *gradients, *out.metrics.values()))


def value_of_gradient(objective: Objective, batch: PreferenceBatch, stats: BatchStatistics) -> Tensor:
    """What the gradient is the derivative of: the whole loss, statistics of the batch without a gradient held fixed."""
    return objective(batch, stats).loss / max(1, stats.count)


@settings(max_examples=150, deadline=None)
@given(parameters=st.sampled_from(SETTINGS), seed=st.integers(0, 10_000))
def test_gradients_equal_finite_differences_away_from_kinks(parameters: dict[str, Any], seed: int) -> None:
    # losses that are no sum over examples (Dr. DPO, KTO with detach_kl: false) are differentiated whole, statistics and all
    whole = "dr-dpo" in str(parameters) or parameters.get("detach_kl") is False
    objective = fresh(parameters)
    objective.eval()
    batch = random_batch(3, 2, seed)
    rows = torch.arange(3)

    def loss(logps: Tensor) -> Tensor:
        shifted = replace(part(batch, rows, logps), positions=positions)
        current = objective.prepare(objective.margins(shifted)[usable]) if whole else stats
        return value_of_gradient(objective, shifted, current)

    usable = objective.usable(batch)
    positions = usable.long().cumsum(0) - 1
    stats = objective.prepare(objective.margins(batch)[usable])
    leaf = batch.policy_logps.detach().requires_grad_()
    gradient = torch.autograd.grad(loss(leaf), leaf)[0]
    step = 1e-5
    for row in range(3):
        for column in range(2):
            shift = torch.zeros(3, 2, dtype=torch.float64)
            shift[row, column] = step
            with torch.no_grad():
                at, up, down = (float(loss(leaf + sign * shift)) for sign in (0, 1, -1))
            slopes = (up - at) / step, (at - down) / step
            if abs(slopes[0] - slopes[1]) > 1e-2 * (1 + abs(slopes[0])):
                continue  # a kink (hinge, clamps, the edge of Kendall's straight line, KTO's mean at 0) lies within the step
            if parameters["kind"] in STOPPED_GRADIENTS:
                continue  # these have gradients stopped by design; see the tests of stop-gradients
            assert gradient[row, column].item() == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-4)


STOPPED_GRADIENTS = {"alpha-dpo", "nash-md"}
"""Kinds whose value moves with the policy where their gradient, by the papers, does not."""


def gradient_to(parameters: dict[str, Any], batch: PreferenceBatch, *leaves: Tensor) -> list[Tensor | None]:
    loss = build_objective(parameters)(batch).loss
    return list(torch.autograd.grad(loss, leaves, allow_unused=True))


def test_tdpo_2_stops_the_gradient_through_the_chosen_answers_kl_and_tdpo_1_does_not() -> None:
    batch = random_batch(4, 2, 0, missing=0)
    kl = batch.token_kl.detach().requires_grad_() if batch.token_kl is not None else None
    assert kl is not None
    (first,) = gradient_to({"kind": "tdpo", "version": 1}, replace(batch, token_kl=kl), kl)
    (second,) = gradient_to({"kind": "tdpo"}, replace(batch, token_kl=kl), kl)
    assert first is not None and second is not None
    assert (first != 0).all()
    assert (second[:, 0] == 0).all() and (second[:, 1] != 0).all()


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"kind": "dpo"}, "reference_logps"),
        ({"kind": "sppo"}, "win_probabilities"),
        ({"kind": "odpo"}, "pair_logits"),
        ({"kind": "mallows"}, "mean_entropy"),
        ({"kind": "wpo"}, "squared_probability_logs"),
        ({"kind": "chase"}, "other_logps"),
    ],
)
def test_no_gradient_flows_to_what_is_held_fixed(parameters: dict[str, Any], field: str) -> None:
    batch = random_batch(4, 2, 0, missing=0)
    leaf = getattr(batch, field).detach().requires_grad_()
    assert gradient_to(parameters, replace(batch, **{field: leaf}), leaf) == [None]


def test_alpha_dpos_target_margin_carries_no_gradient() -> None:
    """With the target held, the gradient is SimPO's at that target."""
    batch = random_batch(1, 2, 3, missing=0)
    objective = build_objective({"kind": "alpha-dpo", "alpha": 0.5, "beta": 2.0})
    objective.load_state_dict({"mean": -9.0, "deviation": 0.8, "steps": 1})
    objective.eval()
    out = objective(batch)
    simpo = {"kind": "simpo", "gamma_beta_ratio": max(0.0, float(out.metrics["target_margin"]))}
    assert float(out.metrics["target_margin"]) > 0
    expected = torch.autograd.grad(build_objective(simpo)(batch).loss, batch.policy_logps, retain_graph=True)[0]
    found = torch.autograd.grad(out.loss, batch.policy_logps)[0]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("detach", [True, False])
def test_kto_pairs_means_carry_a_gradient_only_where_asked(detach: bool) -> None:
    batch = random_batch(3, 2, 5, missing=0)
    out = build_objective({"kind": "kto-pair", "detach_kl": detach})(batch)
    gradient = torch.autograd.grad(out.loss, batch.policy_logps)[0]

    def by_hand(logps: Tensor) -> Tensor:
        assert batch.reference_logps is not None
        chosen, rejected = (logps - batch.reference_logps).unbind(1)
        chosen_mean, rejected_mean = chosen.mean().clamp(min=0), rejected.mean().clamp(min=0)
        if detach:
            chosen_mean, rejected_mean = chosen_mean.detach(), rejected_mean.detach()
        halves = torch.cat(
            [1 - torch.sigmoid(0.1 * (chosen - rejected_mean)), 1 - torch.sigmoid(0.1 * (chosen_mean - rejected))]
        )
        return halves.mean()

    leaf = batch.policy_logps.detach().requires_grad_()
    torch.testing.assert_close(out.loss.detach(), by_hand(leaf).detach(), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(by_hand(leaf), leaf)[0], atol=1e-12, rtol=1e-12)


def same_loss_and_gradient(left: dict[str, Any], right: dict[str, Any], seed: int, rtol: float = 1e-10) -> None:
    batch = random_batch(5, 2, seed, missing=0)
    outs = [build_objective(parameters)(batch) for parameters in (left, right)]
    gradients = [torch.autograd.grad(out.loss, batch.policy_logps)[0] for out in outs]
    torch.testing.assert_close(outs[0].loss, outs[1].loss, rtol=rtol, atol=rtol)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=rtol, atol=rtol)


EQUAL: list[tuple[dict[str, Any], dict[str, Any], float]] = [
    ({"kind": "s-dpo", "beta": 0.3}, {"kind": "dpo", "beta": 0.3}, 1e-10),
    ({"kind": "alpha-dpo", "alpha": 0.0}, {"kind": "simpo", "beta": 2.5}, 1e-10),
    ({"kind": "f-dpo"}, {"kind": "dpo"}, 1e-10),
    ({"kind": "f-dpo", "divergence": "alpha", "alpha": 1e-7}, {"kind": "dpo"}, 1e-4),
    (
        {"kind": "f-dpo", "divergence": "alpha", "alpha": 1 - 1e-9},
        {"kind": "f-dpo", "divergence": "forward-kl"},
        1e-6,
    ),
    (
        {"kind": "f-dpo", "divergence": "alpha", "alpha": 0.3, "alpha_convention": "complement"},
        {"kind": "f-dpo", "divergence": "alpha", "alpha": 0.7},
        1e-10,
    ),
    ({"kind": "dr-dpo", "beta_prime": 1e7}, {"kind": "dpo"}, 1e-6),
    ({"kind": "beta-dpo", "alpha": 0.0, "filter_share": 0.0}, {"kind": "dpo"}, 1e-10),
    ({"kind": "tdpo", "alpha": 0.0}, {"kind": "dpo"}, 1e-10),
    ({"kind": "r-dpo", "alpha": 0.0}, {"kind": "dpo"}, 1e-10),
    ({"kind": "odpo", "alpha": 0.0}, {"kind": "dpo"}, 1e-10),
    ({"kind": "xpo", "alpha": 0.0}, {"kind": "dpo"}, 1e-10),
    ({"kind": "chase", "alpha": 0.0}, {"kind": "dpo"}, 1e-10),
    ({"kind": "chase", "alpha": 0.0, "inner": {"kind": "dr-dpo"}}, {"kind": "dr-dpo"}, 1e-10),
]


@settings(max_examples=100, deadline=None)
@given(case=st.sampled_from(EQUAL), seed=st.integers(0, 10_000))
def test_limits_and_special_cases_are_the_objectives_that_they_should_be(
    case: tuple[dict[str, Any], dict[str, Any], float], seed: int
) -> None:
    same_loss_and_gradient(case[0], case[1], seed, case[2])


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(["dpo", "f-dpo", "s-dpo", "tdpo"]), rows=st.integers(1, 5), answers=st.integers(2, 5))
def test_log_losses_at_the_reference_are_the_log_of_the_number_of_answers(kind: str, rows: int, answers: int) -> None:
    answers = answers if kind == "s-dpo" else 2
    logps = torch.randn(rows, answers, dtype=torch.float64)
    batch = PreferenceBatch(logps, reference_logps=logps.clone(), token_kl=torch.zeros_like(logps))
    for divergence in ("reverse-kl", "forward-kl", "js", "alpha") if kind == "f-dpo" else (None,):
        parameters = {"kind": kind} if divergence is None else {"kind": kind, "divergence": divergence}
        assert build_objective(parameters)(batch).loss.item() == pytest.approx(math.log(answers), abs=1e-12)


@pytest.mark.parametrize("parameters", SETTINGS)
def test_nothing_is_nan_at_the_reference_where_deviations_are_0(parameters: dict[str, Any]) -> None:
    logps = torch.full((4, 2), -3.0, dtype=torch.float64, requires_grad=True)
    batch = replace(random_batch(4, 2, 0, missing=0), policy_logps=logps, reference_logps=logps.detach())
    objective = build_objective(parameters)
    for _ in range(3):
        out = objective(batch)
        assert torch.isfinite(out.loss) and torch.isfinite(torch.autograd.grad(out.loss, logps)[0]).all()


def minimum(parameters: dict[str, Any], batch: PreferenceBatch) -> Tensor:
    """The log-ratios that minimise a loss, found by Newton's method on log-probabilities."""
    logps = batch.policy_logps.detach().clone().requires_grad_()
    objective = build_objective(parameters)
    optimizer = torch.optim.LBFGS([logps], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(replace(batch, policy_logps=logps)).loss
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    assert batch.reference_logps is not None
    return logps.detach() - batch.reference_logps


def test_ipo_is_least_where_the_margin_is_1_over_2_tau() -> None:
    ratios = minimum({"kind": "ipo", "tau": 0.25}, random_batch(3, 2, 1, missing=0))
    assert (ratios[:, 0] - ratios[:, 1]).tolist() == pytest.approx([2.0] * 3, abs=1e-6)


def test_sppo_is_least_where_the_log_ratio_is_eta_times_the_win_probability_less_one_half() -> None:
    batch = random_batch(3, 4, 1, missing=0)
    assert batch.win_probabilities is not None
    ratios = minimum({"kind": "sppo", "beta": 0.2, "answers": "all"}, batch)
    torch.testing.assert_close(ratios, (batch.win_probabilities - 0.5) / 0.2, atol=1e-6, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(parameters=st.sampled_from(SETTINGS), seed=st.integers(0, 10_000))
def test_neither_padding_nor_the_order_of_the_batch_changes_the_loss(parameters: dict[str, Any], seed: int) -> None:
    batch = random_batch(5, 2, seed)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    # beta-DPO draws the pairs that it leaves out by their places
    if "beta-dpo" in str(parameters):
        order = torch.arange(5)
    padded = PreferenceBatch(
        policy_logps=torch.cat([batch.policy_logps, torch.full((2, 2), math.nan, dtype=torch.float64)])[
            [*order.tolist(), 5, 6]
        ],
        **{
            name: torch.cat([getattr(batch, name), getattr(batch, name)[:2] * (0 if name == "mask" else 7)])[
                [*order.tolist(), 5, 6]
            ]
            for name in FIELDS
        },
    )
    losses = [fresh(parameters)(b).loss.item() for b in (batch, padded)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-10, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    parameters=st.sampled_from([{"kind": k} for k in ("dpo", "ipo", "hinge", "r-dpo", "odpo", "exo", "tdpo", "s-dpo")]),
    seed=st.integers(0, 1000),
    constant=st.floats(-20, 20),
)
def test_kinds_that_see_differences_only_ignore_a_constant(
    parameters: dict[str, Any], seed: int, constant: float
) -> None:
    batch = random_batch(4, 2, seed, missing=0)
    assert batch.reference_logps is not None
    objective = build_objective(parameters)
    for shifted in (
        replace(batch, policy_logps=batch.policy_logps + constant, reference_logps=batch.reference_logps + constant),
        replace(batch, policy_logps=batch.policy_logps + constant),
    ):
        assert objective(shifted).loss.item() == pytest.approx(objective(batch).loss.item(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("parameters", [p for p in SETTINGS if build_objective(p).state_dict()])
def test_running_statistics_go_on_from_their_state_and_stand_still_in_evaluation(parameters: dict[str, Any]) -> None:
    objective = fresh(parameters)
    state = json.loads(json.dumps(objective.state_dict()))
    restored = build_objective(parameters)
    restored.load_state_dict(state)
    for seed in range(2):
        batch = random_batch(6, 2, seed)
        assert restored(batch).loss.item() == objective(batch).loss.item()
    restored.eval()
    before = restored.state_dict()
    restored(random_batch(6, 2, 7))
    assert restored.state_dict() == before
    restored.train()
    restored(random_batch(6, 2, 7))
    assert restored.state_dict() != before


def test_beta_dpo_leaves_out_the_share_that_it_was_told_and_says_so() -> None:
    objective = build_objective({"kind": "beta-dpo", "filter_share": 0.25})
    out = objective(random_batch(8, 2, 0, missing=0))
    assert int((out.per_example == 0).sum()) == 2
    assert float(out.metrics["filtered_share"]) == pytest.approx(0.25)


def test_dr_dpo_weighs_a_suspicious_pair_less() -> None:
    logps = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-30.0, 0.0]], dtype=torch.float64, requires_grad=True)
    batch = PreferenceBatch(logps, reference_logps=torch.zeros_like(logps))
    plain, robust = (
        torch.autograd.grad(build_objective({"kind": kind}).__call__(batch).loss, logps)[0].abs()[:, 0]
        for kind in ("dpo", "dr-dpo")
    )
    assert plain[2] > plain[0]
    assert robust[2] < robust[0]


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"kind": "dr-dpo", "inner": {"kind": "sppo"}}, "'sppo' found"),
        ({"kind": "beta-dpo", "inner": {"kind": "ipo"}}, "'ipo' found"),
        ({"kind": "wpo", "inner": {"kind": "dpo", "reference": "round"}}, "belongs beside `inner`"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(parameters: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        build_objective(parameters)


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
        token_kl=nan,
        mean_entropy=nan,
        other_logps=nan,
        squared_probability_logs=nan,
    )
    out = build_objective(parameters)(batch)
    assert out.loss.item() == 0
    assert torch.autograd.grad(out.loss, logps)[0].tolist() == [[0, 0], [0, 0]]
    assert all(float(value) == 0 for value in out.metrics.values())


@pytest.mark.parametrize("parameters", SETTINGS)
def test_an_example_with_one_answer_left_does_not_disturb_the_others(parameters: dict[str, Any]) -> None:
    whole = check_pair()
    fields = ("policy_logps", *(name for name in FIELDS if getattr(whole, name) is not None))
    values = {name: torch.cat([getattr(whole, name)] * 2) for name in fields}
    values["policy_logps"][1, 1] = math.nan
    batch = PreferenceBatch(mask=torch.tensor([[True, True], [True, False]]), **values)
    objective = build_objective(parameters)
    out = objective(batch)
    assert torch.isfinite(out.loss)
    assert out.per_example[0].item() == pytest.approx(build_objective(parameters)(whole).loss.item(), rel=1e-12)
    if parameters["kind"] != "sppo" or parameters.get("estimate", "soft") != "soft":
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


@pytest.mark.parametrize("log_ratio", [-39.0, -79.0, -500.0])
def test_the_norm_of_a_gradient_under_forward_kl_is_finite_however_far_the_policy_has_gone(log_ratio: float) -> None:
    weight = torch.zeros(1000, requires_grad=True)
    batch = PreferenceBatch(
        policy_logps=torch.tensor([[log_ratio, 0.0]]) + weight.sum() * torch.tensor([[1.0, -1.0]]),
        reference_logps=torch.zeros(1, 2),
    )
    build_objective({"kind": "f-dpo", "divergence": "forward-kl"})(batch).loss.backward()
    assert torch.nn.utils.clip_grad_norm_([weight], 1.0).isfinite()


def test_the_entropy_from_answers_that_the_reference_finds_equally_likely_is_their_mean_surprise_in_float64() -> None:
    policy = torch.tensor([-1.0, -2.5, -4.0], dtype=torch.float64)
    found = sampled_information_entropy(policy, torch.full((3,), -7.0, dtype=torch.float64))
    assert float(found) == pytest.approx(2.5, abs=1e-12)
