"""Two adapters on one base: each learns as it would alone, chases the other as the paper says, and changes roles with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load

from learner.config import AdapterConfig
from learner.errors import InputError
from learner.likelihood import collate
from learner.policy import FIRST, SECOND
from learner.records import ADAPTER_FILES, Answer, Module, ScoredGroup
from learner.roles import RoleSwap
from learner.trainer import Trainer
from tests.learner.builders import random_groups, tiny_model, trainer_config
from tests.learner.test_trainer import Store

RATE = 3e-3
CHASE: dict[str, Any] = {"kind": "chase", "alpha": 0.5}


def build(store: Store | None = None, checkpointing: bool = False, **changes: Any) -> Trainer:
    """A trainer whose learning rate is the same at every step, so that it can be scaled."""
    settings: dict[str, Any] = {
        "optimizer": {"learning_rate": RATE, "schedule": "constant", "warmup_ratio": 0.0},
        "objective": {"kind": "dpo"},
        "learner": {"device": "cpu", "gradient_checkpointing": checkpointing},
    }
    return Trainer(trainer_config(**(settings | changes)), (store or Store()).fetch, base=tiny_model())


def chasing(store: Store | None = None, objective: dict[str, Any] = CHASE, **adapters: Any) -> Trainer:
    return build(store, objective=objective, adapters={"rank": 4, "alpha": 8, "slow": "chase", **adapters})


def learn(trainer: Trainer, steps: int = 3, first: int = 0) -> list[dict[str, float]]:
    trainer.begin_version(1, 0)
    return [trainer.step(random_groups(4, seed=first + number), 0).metrics for number in range(steps)]


def weights(trainer: Trainer, slot: str) -> torch.Tensor:
    return torch.cat([value.flatten() for value in trainer.policy.state(slot).values()])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_without_a_chasing_term_both_adapters_learn_as_two_runs_of_their_own_bit_for_bit(
    checkpointing: bool, dropout: float
) -> None:
    adapters = {"rank": 4, "alpha": 8, "dropout": dropout}
    pair = build(
        checkpointing=checkpointing,
        objective={"kind": "chase", "alpha": 0.0},
        adapters=adapters | {"slow": "chase", "slow_rate_ratio": 0.25, "swap": "never"},
    )
    learn(pair)
    for slot, ratio in ((FIRST, 1.0), (SECOND, 0.25)):
        optimizer = {"learning_rate": RATE * ratio, "schedule": "constant", "warmup_ratio": 0.0}
        alone = build(checkpointing=checkpointing, adapters=adapters, optimizer=optimizer)
        learn(alone)
        assert torch.equal(weights(pair, slot), weights(alone, FIRST))


def test_equal_rates_and_no_chasing_keep_fast_and_slow_equal() -> None:
    trainer = chasing(objective={"kind": "chase", "alpha": 0.0}, slow_rate_ratio=1.0, swap="never")
    learn(trainer)
    assert torch.equal(weights(trainer, FIRST), weights(trainer, SECOND))
    assert weights(trainer, FIRST).abs().sum() > 0


def test_both_adapters_begin_equal_and_the_first_chasing_term_is_log_two() -> None:
    trainer = chasing()
    assert torch.equal(weights(trainer, FIRST), weights(trainer, SECOND))
    metrics = learn(trainer, 1)[0]
    log_two = float(torch.tensor(2.0).log())
    assert metrics["loss"] - metrics["inner_loss"] == pytest.approx(0.5 * log_two, abs=1e-5)
    assert metrics["slow_loss"] - metrics["slow_inner_loss"] == pytest.approx(0.5 * log_two, abs=1e-5)  # bounded


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradients_of_both_losses_are_those_of_the_paper_with_the_other_adapter_detached(
    checkpointing: bool,
) -> None:
    trainer = build(
        checkpointing=checkpointing, objective=CHASE, adapters={"rank": 4, "alpha": 8, "slow": "chase", "swap": "never"}
    )
    learn(trainer)
    groups = random_groups(3, seed=77)
    seen: dict[str, dict[str, torch.Tensor]] = {}
    for trained in (trainer.fast, trainer.slow):
        assert trained is not None

        def keep(*_: Any, slot: str = trained.slot) -> float:
            seen[slot] = {n: w.grad.clone() for n, w in trainer.policy.weights[slot].items() if w.grad is not None}
            return 0.0

        trained.step = keep  # type: ignore[method-assign]
    trainer.step(groups, 0)

    examples = trainer._examples(groups)
    texts = [text for example in examples for text in example.texts]
    reference = torch.tensor([sum(row) for row in trainer.answer_logprobs(texts, "base")]).view(-1, 2)
    values = {
        slot: torch.tensor(
            [sum(row) for row in trainer.answer_logprobs(texts, module="fast" if slot == FIRST else "slow")]
        ).view(-1, 2)
        for slot in (FIRST, SECOND)
    }
    beta, alpha = 0.1, 0.5
    tokens = collate(texts, trainer.policy.device)
    for slot, other in ((FIRST, SECOND), (SECOND, FIRST)):
        trainer.policy.train(slot)
        trainer.policy.model.zero_grad()
        logps = trainer.policy.likelihood.measure(tokens)["policy_logps"].view(-1, 2)
        ahead = logps[:, 0] - logps[:, 1]
        own = -torch.nn.functional.logsigmoid(beta * (ahead - (reference[:, 0] - reference[:, 1])))
        lead = ahead - (values[other][:, 0] - values[other][:, 1])
        chase = -torch.nn.functional.logsigmoid(beta * lead)  # the slow one's is -log sigma(-beta (h_fast - h_slow))
        (own + alpha * chase).mean().backward()
        for name, weight in trainer.policy.weights[slot].items():
            assert weight.grad is not None
            torch.testing.assert_close(seen[slot][name], weight.grad, atol=2e-6, rtol=2e-4)
    assert all(g.abs().sum() > 0 for slot in seen for n, g in seen[slot].items() if "lora_B" in n)


def test_going_on_from_a_snapshot_gives_the_same_bytes_for_both_adapters_and_keeps_the_roles() -> None:
    store = Store()
    trainer = chasing(store, swap="roles", swap_interval=1, objective={"kind": "chase", "alpha": 0.3})
    store.publish(trainer, 0)
    trainer._take_roles(trainer.slow, trainer.fast)  # type: ignore[arg-type]
    learn(trainer, 2)
    store.publish(trainer, 1)
    again = chasing(store, swap="roles", swap_interval=1, objective={"kind": "chase", "alpha": 0.3})
    again.restore(store[1], store.slow[1])
    assert again.fast.slot == trainer.fast.slot
    for one in (trainer, again):
        one.begin_version(2, 1)
        one.step(random_groups(4, seed=50, version=1), 1)
    first, second = trainer.snapshot(2), again.snapshot(2)
    assert first.files == second.files
    assert first.slow is not None
    assert second.slow is not None
    assert first.slow.files == second.slow.files
    assert first.slow.canary == second.slow.canary
    assert set(first.slow.files) == set(ADAPTER_FILES)


def test_a_job_with_one_adapter_does_not_resume_from_a_version_of_two() -> None:
    store = Store()
    store.publish(chasing(store), 0)
    with pytest.raises(InputError, match="holds the adapters fast, slow"):
        build(store).restore(store[0])


def test_the_average_follows_the_fast_adapter_by_its_decay() -> None:
    trainer = build(adapters={"rank": 4, "alpha": 8, "slow": "average", "slow_decay": 0.75})
    before = weights(trainer, SECOND)
    learn(trainer, 1)
    torch.testing.assert_close(weights(trainer, SECOND), 0.75 * before + 0.25 * weights(trainer, FIRST))
    snapshot = trainer.snapshot(1)
    assert snapshot.slow is not None
    assert snapshot.slow.digest != snapshot.digest


def test_the_reference_slow_moves_with_the_slow_adapter() -> None:
    trainer = build(
        adapters={"rank": 4, "alpha": 8, "slow": "average", "slow_decay": 0.0},
        objective={"kind": "dpo", "reference": "slow"},
    )
    margins = [metrics["margin"] for metrics in learn(trainer)]
    assert margins == pytest.approx([0.0, 0.0, 0.0], abs=1e-4)  # the average keeps nothing of itself: it is the policy
    lagging = build(
        adapters={"rank": 4, "alpha": 8, "slow": "average", "slow_decay": 0.9},
        objective={"kind": "dpo", "reference": "slow"},
    )
    assert abs(learn(lagging)[-1]["margin"]) > 1e-3


@pytest.mark.parametrize(("swap", "ratios"), [("roles", (0.5, 1.0)), ("weights", (1.0, 0.5))])
def test_when_the_slow_adapter_is_better_it_becomes_the_fast_one(swap: str, ratios: tuple[float, float]) -> None:
    trainer = chasing(swap=swap, swap_interval=2, slow_rate_ratio=0.5)
    trainer._swap = RoleSwap(trainer.config.adapters.model_copy(update={"swap_by": "win-rate"}))
    groups = [_written_by_both(group) for group in random_groups(4, answers=4)]
    for group_number in range(2):
        metrics = trainer.step([_slow_wins(group) for group in groups], 0).metrics
        assert metrics["fast_vs_slow_win_rate"] < 0.5
        assert metrics["role_swaps"] == float(group_number == 1)
    assert trainer.fast.slot == SECOND
    assert (trainer.fast.rate_ratio, trainer.slow.rate_ratio) == ratios  # type: ignore[union-attr]
    assert trainer.policy.active == SECOND
    published = load(trainer.snapshot(1).files["adapter_model.safetensors"])
    assert all(torch.equal(value, published[name]) for name, value in trainer.policy.state(SECOND).items())


def _written_by_both(group: ScoredGroup) -> ScoredGroup:
    answers = tuple(
        Answer.model_validate(answer.model_dump() | {"module": "fast" if place < 2 else "slow"})
        for place, answer in enumerate(group.answers)
    )
    return group.model_copy(update={"answers": answers})


def _slow_wins(group: ScoredGroup) -> ScoredGroup:
    count = len(group.answers)
    logits = tuple(tuple(0.0 if i == j else (2.0 if i > j else -2.0) for j in range(count)) for i in range(count))
    return group.model_copy(update={"ordered_logits": logits})


def _written(group: ScoredGroup, version: int, wins: Module) -> ScoredGroup:
    """By both adapters in the roles that they had at a version, and won by the one that was ``wins`` then."""
    scored = _slow_wins(_written_by_both(group))
    answers = tuple(answer.model_copy(update={"version": version}) for answer in scored.answers)
    if wins == "fast":
        scored = scored.model_copy(update={"ordered_logits": tuple(zip(*scored.ordered_logits, strict=True))})
    return scored.model_copy(update={"answers": answers, "version": version})


def by_win_rate() -> Trainer:
    """Two adapters that are compared by their answers after every step, those of two versions before included."""
    return build(
        objective=CHASE,
        adapters={"rank": 4, "alpha": 8, "slow": "chase", "swap_by": "win-rate", "swap_interval": 1},
        schedule={"mode": "online", "max_staleness": 2, "prompts_per_round": 8, "prompts_per_step": 4},
    )


def test_answers_from_before_a_change_of_roles_count_for_the_adapter_that_wrote_them() -> None:
    trainer = by_win_rate()
    trainer.begin_version(1, 0)
    groups = [_written(group, 0, wins="slow") for group in random_groups(4, answers=4)]
    metrics = [trainer.step(groups, 0).metrics for _ in range(4)]
    assert [one["role_swaps"] for one in metrics] == [1.0] * 4
    assert metrics[0]["fast_vs_slow_win_rate"] < 0.5, "by the roles that were"
    assert metrics[1]["fast_vs_slow_win_rate"] == pytest.approx(1 - metrics[0]["fast_vs_slow_win_rate"])
    assert trainer.fast.slot == SECOND


def test_what_the_roles_were_is_kept_for_as_long_as_answers_may_be_stale_and_saved() -> None:
    store = Store()
    trainer = by_win_rate()
    store.publish(trainer, 0)
    trainer.begin_version(1, 0)
    trainer.step([_written(group, 0, wins="slow") for group in random_groups(4, answers=4)], 0)
    store.publish(trainer, 1)
    again = by_win_rate()
    again.restore(store[1], store.slow[1])
    for one in (trainer, again):
        one.begin_version(2, 1)
        assert one.fast.slot == SECOND
        old, new = (
            one.step([_written(g, version, wins) for g in random_groups(4, answers=4)], 1).metrics  # type: ignore[arg-type]
            for version, wins in ((0, "slow"), (1, "fast"))
        )
        assert old["fast_vs_slow_win_rate"] > 0.5 and new["fast_vs_slow_win_rate"] > 0.5
        one.begin_version(4, 3)
        gone = one.step([_written(g, 0, "slow") for g in random_groups(4, answers=4)], 3).metrics
        assert "fast_vs_slow_win_rate" not in gone


def test_fresh_adapters_begin_with_an_interval_and_rates_of_their_own() -> None:
    trainer = build(
        objective=CHASE,
        adapters={"rank": 4, "alpha": 8, "slow": "chase", "slow_rate_ratio": 0.25, "swap_interval": 2},
        schedule={
            "rounds": 1, "prompts_per_round": 8, "prompts_per_step": 4, "domains": ["a", "b"], "combine": "last",
        },
    )  # fmt: skip
    trainer.begin_version(0, 0, "a")
    assert trainer.slow is not None
    trainer._take_roles(trainer.slow, trainer.fast)
    metrics = trainer.step(random_groups(4), 0).metrics
    assert metrics["learning_rate"] == pytest.approx(0.25 * RATE), "the fast adapter's own"
    assert trainer._swap.state_dict()["steps"] == 1
    trainer.combine()
    assert trainer._swap.state_dict() == {"steps": 0, "measured": 0, "lead": 0.0}
    assert (trainer.fast.slot, trainer.fast.rate_ratio, trainer.slow.rate_ratio) == (SECOND, 1.0, 0.25)


def test_roles_change_after_a_whole_interval_in_which_the_slow_one_did_better_and_never_otherwise() -> None:
    config = AdapterConfig(slow="chase", swap_interval=3)
    swap = RoleSwap(config)
    assert [swap.observe((0.7, 0.6), None) for _ in range(7)] == [False, False, True, False, False, True, False]
    assert not any(RoleSwap(config).observe((0.6, 0.7), None) for _ in range(9))
    assert not any(RoleSwap(config).observe((0.6, 0.6), None) for _ in range(9))
    never = RoleSwap(config.model_copy(update={"swap": "never"}))
    assert not any(never.observe((0.7, 0.1), 0.0) for _ in range(9))


def test_a_swap_by_win_rate_waits_for_a_measurement() -> None:
    config = AdapterConfig(slow="chase", swap_interval=2, swap_by="win-rate")
    swap = RoleSwap(config)
    assert [swap.observe((0.7, 0.1), None) for _ in range(4)] == [False] * 4
    assert [swap.observe((0.1, 0.7), rate) for rate in (0.4, None)] == [False, True]


def test_an_interval_goes_on_where_it_was_saved() -> None:
    config = AdapterConfig(slow="chase", swap_interval=2)
    first, second = RoleSwap(config), RoleSwap(config)
    first.observe((0.7, 0.6), None)
    second.load_state_dict(first.state_dict())
    assert second.observe((0.7, 0.6), None)
