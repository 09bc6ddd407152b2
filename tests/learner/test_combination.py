"""Combinations of adapters against dense matrices and merged weights, and the history of domains as bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.combination import HISTORY_FILE, Adapter, DomainHistory, combine, increment_file, truncate
from learner.config import AdapterConfig
from learner.errors import InputError
from learner.policy import Policy
from tests.learner.builders import VOCABULARY, tiny_model

SHAPES = {"model.q_proj": (6, 10), "model.up_proj": (12, 5)}
SMALL_SHAPES = {"model.tiny": (3, 4), "model.up_proj": (12, 5)}


def random_adapter(
    seed: int, rank: int = 2, alpha: float = 3.0, shapes: dict[str, tuple[int, int]] | None = None
) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for layer, (rows, columns) in (shapes or SHAPES).items():
        state[f"{layer}.lora_A.weight"] = torch.randn(rank, columns, generator=generator)
        state[f"{layer}.lora_B.weight"] = torch.randn(rows, rank, generator=generator)
    return Adapter(state, rank, alpha)


def dense(adapter: Adapter) -> dict[str, Tensor]:
    """Every layer's update as one matrix, in float64."""
    return {
        layer: adapter.alpha / adapter.rank * (b.double() @ a.double()) for layer, (a, b) in adapter.layers().items()
    }


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Relative Frobenius norm of the difference over all layers."""
    assert left.keys() == right.keys()
    lost = sum(float((left[k] - right[k]).square().sum()) for k in left)
    whole = sum(float(right[k].square().sum()) for k in left)
    return (lost / whole) ** 0.5 if whole else lost**0.5


def weighted(adapters: list[Adapter], coefficients: list[float]) -> dict[str, Tensor]:
    parts = [dense(adapter) for adapter in adapters]
    return {k: sum(c * part[k] for c, part in zip(coefficients, parts, strict=True)) for k in parts[0]}


def history_of(count: int) -> DomainHistory:
    """Domains of different ranks and scales, each on the combination of the ones before with uneven weights."""
    history = DomainHistory()
    for i in range(count):
        total = sum(range(1, i + 1))
        start = history.coefficients([(j + 1) / total for j in range(i)]) if i else ()
        history.add(f"domain {i}", random_adapter(i, rank=1 + i % 3, alpha=0.7 + i), start)
    return history


@given(
    st.lists(st.tuples(st.integers(1, 4), st.floats(0.5, 16), st.floats(-2, 2)), min_size=1, max_size=5),
    st.integers(0, 1000),
)
@settings(max_examples=50)
def test_a_combination_is_the_sum_of_the_dense_products(parts: list[tuple[int, float, float]], seed: int) -> None:
    adapters = [random_adapter(seed + i, rank, alpha) for i, (rank, alpha, _) in enumerate(parts)]
    coefficients = [c for _, _, c in parts]
    combined = combine(adapters, coefficients)
    expected = weighted(adapters, coefficients)
    size = max(float(matrix.abs().max()) for adapter in adapters for matrix in dense(adapter).values())
    assert all(torch.allclose(dense(combined)[k], expected[k], rtol=0, atol=1e-6 * size) for k in expected)
    assert combined.alpha == combined.rank == (sum(r for r, _, c in parts if c) or 1)


def test_without_anything_left_a_combination_changes_nothing() -> None:
    combined = combine([random_adapter(0), random_adapter(1)], [0.0, 0.0])
    assert combined.shapes() == SHAPES
    assert all(not matrix.any() for matrix in dense(combined).values())
    assert truncate(combine([combined, combined], [1.0, 1.0]), 1)[1] == 0.0


def test_averaging_the_factors_is_not_a_combination() -> None:
    first, second = random_adapter(0), random_adapter(1)
    averaged = Adapter({name: (first.state[name] + second.state[name]) / 2 for name in first.state}, 2, 3.0)
    assert distance(dense(averaged), dense(combine([first, second], [0.5, 0.5]))) > 0.1


def test_adapters_of_other_layers_or_shapes_are_refused() -> None:
    with pytest.raises(InputError, match=r"differing: model\.q_proj"):
        combine([random_adapter(0), random_adapter(1, shapes={"model.up_proj": (12, 5)})], [1, 1])
    with pytest.raises(InputError, match=r"differing: model\.up_proj"):
        combine([random_adapter(0), random_adapter(1, shapes={**SHAPES, "model.up_proj": (12, 6)})], [1, 1])


@pytest.mark.parametrize("coefficients", [[], [1.0], [1.0, float("nan")]])
def test_coefficients_must_be_finite_and_one_each(coefficients: list[float]) -> None:
    with pytest.raises(InputError, match="coefficient"):
        combine([random_adapter(0), random_adapter(1)], coefficients)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 3}, "not of rank 3"),
        ({"rank": 0}, "no scale"),
        ({"alpha": float("inf")}, "no scale"),
        ({"state": {}}, "of every layer"),
        ({"state": {"x.lora_A.weight": torch.zeros(2, 3)}}, "of every layer"),
        ({"state": {"x.lora_A.weight": torch.zeros(2, 3), "x.lora_embedding_B": torch.zeros(3, 2)}}, "of every layer"),
        (
            {"state": {"x.lora_A.weight": torch.zeros(2, 3), "x.lora_B.weight": torch.zeros(3, 2).half()}},
            "give float32",
        ),
    ],
)
def test_what_is_no_plain_adapter_is_refused(changes: dict[str, Any], message: str) -> None:
    good = random_adapter(0)
    with pytest.raises(InputError, match=message):
        Adapter(**{"state": good.state, "rank": good.rank, "alpha": good.alpha} | changes)


@pytest.mark.parametrize("rank", [1, 2, 4, 5])
@pytest.mark.parametrize("shapes", [SHAPES, SMALL_SHAPES])
def test_truncation_is_the_best_approximation_and_says_its_error(rank: int, shapes: dict[str, tuple[int, int]]) -> None:
    adapter = combine([random_adapter(i, 2, shapes=shapes) for i in range(3)], [0.5, 0.3, 0.2])
    truncated, error = truncate(adapter, rank)
    lost = whole = 0.0
    for matrix in dense(adapter).values():
        values = torch.linalg.svdvals(matrix)
        lost, whole = lost + float(values[rank:].square().sum()), whole + float(values.square().sum())
    assert (truncated.rank, truncated.alpha) == (rank, rank)
    assert truncated.shapes() == shapes
    assert error == pytest.approx((lost / whole) ** 0.5, abs=1e-7)
    assert distance(dense(truncated), dense(adapter)) == pytest.approx(error, abs=1e-6)


def test_truncation_to_its_own_rank_loses_nothing_and_below_one_is_refused() -> None:
    adapter = random_adapter(0)
    assert truncate(adapter, 2) == (adapter, 0.0)
    twice = combine([adapter, adapter], [0.5, 0.5])
    truncated, error = truncate(twice, 2)
    assert error < 1e-6
    assert distance(dense(truncated), dense(adapter)) < 1e-6
    with pytest.raises(InputError, match="rank: 0"):
        truncate(adapter, 0)


def test_the_matrix_of_coefficients_follows_the_recursion() -> None:
    history = history_of(3)
    # c^(1) = (1), so domain 2 starts from D_1; c^(2) = 1/3 (1, 0) + 2/3 (1, 1), so domain 3 starts from D_1 + 2/3 D_2.
    expected = [(1, 0, 0), (1, 1, 0), (1, 2 / 3, 1)]
    assert [list(row) for row in history.matrix] == [pytest.approx(row) for row in expected]
    assert history.coefficients((0.2, 0.3, 0.5)) == pytest.approx((1, 0.3 + 0.5 * 2 / 3, 0.5))


def test_a_combination_is_the_weighted_sum_of_the_domains_policies() -> None:
    history, weights = history_of(4), [0.1, 0.2, 0.3, 0.4]
    policies = [history.policy_of(i) for i in range(4)]
    assert distance(dense(history.adapter(weights)), weighted(policies, weights)) < 1e-6
    assert history.adapter(weights).rank == sum(increment.rank for increment in history.increments)


def test_all_weight_on_a_domain_gives_back_its_policy_to_the_bit() -> None:
    history = history_of(4)
    for i in range(4):
        one_hot, policy = history.adapter([float(i == j) for j in range(4)]), history.policy_of(i)
        assert one_hot.rank == policy.rank == sum(increment.rank for increment in history.increments[: i + 1])
        assert all(torch.equal(one_hot.state[name], policy.state[name]) for name in policy.state)
    start = combine(history.increments[:3], history.matrix[3][:3])
    expected = {k: v + dense(history.increments[3])[k] for k, v in dense(start).items()}
    assert distance(dense(history.policy_of(3)), expected) < 1e-6


@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.6], [-0.5, 1.5], [float("nan"), 1.0], [0.2, 0.2, 0.6]])
def test_weights_off_the_simplex_are_refused(weights: list[float]) -> None:
    with pytest.raises(InputError, match="with a sum of 1"):
        history_of(2).adapter(weights)


def test_domains_that_do_not_fit_are_refused_and_leave_the_history_as_it_was() -> None:
    history = history_of(2)
    before = history.to_files()
    for name, increment, start, message in (
        ("domain 1", random_adapter(5), (1, 1), "learned before"),
        ("new", random_adapter(5), (1,), "1 coefficients after 2"),
        ("new", random_adapter(5), (1, float("inf")), "finite"),
        ("new", random_adapter(5, shapes=SMALL_SHAPES), (1, 1), "different layers"),
    ):
        with pytest.raises(InputError, match=message):
            history.add(name, increment, start)
    assert history.to_files() == before
    for domain in (-1, 2):
        with pytest.raises(InputError, match="count from 0"):
            history.policy_of(domain)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_history_goes_through_files_to_the_bit_and_always_the_same_ones(count: int) -> None:
    history = history_of(count)
    files = history.to_files()
    assert len(files) == count + 1
    assert files == history_of(count).to_files()
    back = DomainHistory.from_files({**files, "adapter_config.json": b"{}"})
    assert back.to_files() == files
    assert (back.domains, back.matrix) == (history.domains, history.matrix)
    for ours, theirs in zip(history.increments, back.increments, strict=True):
        assert (ours.rank, ours.alpha) == (theirs.rank, theirs.alpha)
        assert all(torch.equal(ours.state[name], theirs.state[name]) for name in ours.state)


def test_one_more_domain_leaves_the_files_of_the_earlier_ones_as_they_were() -> None:
    before, after = history_of(2).to_files(), history_of(3).to_files()
    assert {name for name in before if before[name] == after[name]} == {increment_file(0), increment_file(1)}


def test_files_that_are_missing_or_broken_are_refused_by_name() -> None:
    files = history_of(2).to_files()
    broken = json.loads(files[HISTORY_FILE])
    broken["domains"][1]["start_coefficients"] = []
    for changes, message in (
        ({HISTORY_FILE: b"{"}, HISTORY_FILE),
        ({HISTORY_FILE: b'{"domains": 3}'}, HISTORY_FILE),
        ({HISTORY_FILE: json.dumps(broken).encode()}, "0 coefficients after 1"),
        ({increment_file(1): b"x"}, increment_file(1)),
    ):
        with pytest.raises(InputError, match=message):
            DomainHistory.from_files({**files, **changes})
    for name in (HISTORY_FILE, increment_file(1)):
        with pytest.raises(InputError, match=f"{name} is missing"):
            DomainHistory.from_files({key: value for key, value in files.items() if key != name})


def test_a_model_with_the_combined_adapter_is_the_model_with_merged_weights() -> None:
    def policy(rank: int, alpha: float) -> Policy:
        return Policy(tiny_model(), AdapterConfig(rank=rank, alpha=alpha), 0, "tiny")

    shapes = Adapter(policy(1, 1).state(), 1, 1.0).shapes()
    history, start = DomainHistory(), ()
    for i in range(3):
        increment = random_adapter(i, rank=2 + i, alpha=0.1 * (i + 1), shapes=shapes)
        history.add(f"domain {i}", increment, start)
        start = history.coefficients([1 / (i + 1)] * (i + 1))
    combined = history.adapter([0.5, 0.2, 0.3])
    adapted = policy(combined.rank, combined.alpha)
    adapted.load_state(combined.state)

    merged = tiny_model()
    coefficients = history.coefficients([0.5, 0.2, 0.3])
    with torch.no_grad():
        for layer, update in weighted(list(history.increments), list(coefficients)).items():
            merged.get_submodule(layer.removeprefix("base_model.model.")).weight += update.float()

    tokens = torch.randint(VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(1))
    with adapted.evaluating():
        found = adapted.model(input_ids=tokens).logits
    with torch.no_grad():
        expected, plain = merged(input_ids=tokens).logits, tiny_model()(input_ids=tokens).logits
    assert float((expected - plain).abs().max()) > 0.1
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
