"""Domain after domain: what was learned stays in the combination, and a job goes on exactly where it stopped, also between domains."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from learner.errors import InputError
from learner.likelihood import Text
from learner.policy import FIRST
from learner.records import ADAPTER_FILES
from learner.trainer import Trainer
from tests.learner.builders import random_groups, tiny_model, trainer_config
from tests.learner.test_trainer import Store

TEXTS: list[Text] = [([1, 5, 9], [2, 3, 4, 7]), ([4, 4], [8, 1, 3])]


def build(store: Store, combine: str = "cofs", **changes: Any) -> Trainer:
    settings: dict[str, Any] = {
        "objective": {"kind": "dpo"},
        "adapters": {"rank": 4, "alpha": 8},
        "schedule": {
            "rounds": 1,
            "prompts_per_round": 8,
            "prompts_per_step": 4,
            "domains": ["a", "b", "c"],
            "combine": combine,
            "memory_share": 0.5,
        },
        "optimizer": {"learning_rate": 1e-2, "schedule": "constant", "warmup_ratio": 0.0, "span": "domain"},
    }
    return Trainer(trainer_config(**(settings | changes)), store.fetch, base=tiny_model())


def learn(trainer: Trainer, store: Store, version: int, domain: str) -> None:
    """One version of a domain: two steps, then publish ``version``."""
    trainer.begin_version(version - 1, version - 1, domain)
    groups = random_groups(8, seed=version, version=version - 1, round=version - 1)
    for group in (groups[:4], groups[4:]):
        trainer.step(group, version - 1)
    store.publish(trainer, version)


def logprobs(trainer: Trainer, under: int | str = "current") -> torch.Tensor:
    return torch.tensor([value for row in trainer.answer_logprobs(TEXTS, under) for value in row])


@pytest.mark.parametrize("combine", ["cofs", "mean", "last"])
def test_the_end_of_the_first_domain_changes_nothing_but_what_is_trained(combine: str) -> None:
    store = Store()
    trainer = build(store, combine)
    store.publish(trainer, 0)
    learn(trainer, store, 1, "a")
    before = logprobs(trainer)
    assert not torch.allclose(before, logprobs(trainer, "base"), atol=1e-3)
    trainer.begin_version(1, 1, "b")
    torch.testing.assert_close(logprobs(trainer), before, atol=1e-5, rtol=0)
    assert all(not value.any() for name, value in trainer.policy.state().items() if "lora_B" in name)
    assert trainer.continual.weights == (1.0,)


def test_the_last_domains_policy_is_what_it_was_before_it_was_combined() -> None:
    store = Store()
    trainer = build(store, "last")
    store.publish(trainer, 0)
    learn(trainer, store, 1, "a")
    learn(trainer, store, 2, "b")
    before = logprobs(trainer)
    metrics = trainer.combine()
    assert metrics == {"combination_weight/a": 0.0, "combination_weight/b": 1.0}
    torch.testing.assert_close(logprobs(trainer), before, atol=1e-5, rtol=0)


def test_the_mean_of_two_policies_lies_between_them_as_their_weights_do() -> None:
    store = Store()
    trainer = build(store, "mean")
    store.publish(trainer, 0)
    learn(trainer, store, 1, "a")
    first = trainer.policy.adapter()
    learn(trainer, store, 2, "b")
    second = trainer.policy.adapter()
    trainer.combine()
    mean = trainer.policy.adapter()
    for layer, (a, b) in mean.layers().items():
        products = [x.scale * x.layers()[layer][1] @ x.layers()[layer][0] for x in (first, second)]
        torch.testing.assert_close(mean.scale * b @ a, (products[0] + products[1]) / 2, atol=1e-6, rtol=0)


def test_cofs_finds_weights_whose_memory_loss_is_no_worse_than_the_last_policys() -> None:
    store = Store()
    trainer = build(store)
    store.publish(trainer, 0)
    learn(trainer, store, 1, "a")
    learn(trainer, store, 2, "b")
    metrics = trainer.combine()
    assert metrics["memory_loss"] <= metrics["memory_loss_of_last"]
    assert metrics["memory_pairs"] == 8
    assert metrics["combination_weight/a"] + metrics["combination_weight/b"] == pytest.approx(1)
    published = store.publish(trainer, 3)
    assert published.rank <= 8
    torch.testing.assert_close(logprobs(trainer), logprobs(trainer, 3), atol=1e-5, rtol=0)


def test_a_domain_learns_against_the_policy_that_it_started_from() -> None:
    store = Store()
    trainer = build(store)
    store.publish(trainer, 0)
    learn(trainer, store, 1, "a")
    trainer.begin_version(1, 1, "b")
    metrics = trainer.step(random_groups(4, seed=3, version=1), 1).metrics
    assert metrics["loss"] == pytest.approx(float(torch.tensor(2.0).log()), abs=1e-4)


@pytest.mark.parametrize("slow", ["off", "chase"])
@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_job_that_stops_within_or_between_domains_goes_on_with_the_same_bytes(stop: int, slow: str) -> None:
    changes: dict[str, Any] = {"adapters": {"rank": 4, "alpha": 8, "slow": slow}}
    if slow == "chase":
        changes["objective"] = {"kind": "chase", "inner": {"kind": "dpo"}}
    store = Store()
    trainer = build(store, **changes)
    store.publish(trainer, 0)
    whole = _from(trainer, store, 0)
    again_store = Store({version: files for version, files in store.items() if version <= stop})
    again_store.slow = {version: files for version, files in store.slow.items() if version <= stop}
    again = build(again_store, **changes)
    again.restore(*[files[stop] for files in (again_store, again_store.slow) if files])
    rest = _from(again, again_store, stop)
    for version in range(stop + 1, 6):
        assert rest[version] == whole[version]


def _from(trainer: Trainer, store: Store, version: int) -> dict[int, Any]:
    """Versions 1 to 5 from ``version`` on: a, b, their combination, c, and all three's."""
    for target in range(version + 1, 6):
        if target in (3, 5):
            trainer.combine()
            store.publish(trainer, target)
        else:
            learn(trainer, store, target, {1: "a", 2: "b", 4: "c"}[target])
    return dict(store)


def test_without_combination_one_adapter_goes_through_all_domains() -> None:
    store = Store()
    trainer = build(store, "none")
    store.publish(trainer, 0)
    learn(trainer, store, 1, "a")
    before = trainer.policy.state()
    trainer.begin_version(1, 1, "b")
    assert all(torch.equal(value, before[name]) for name, value in trainer.policy.state().items())
    assert store.publish(trainer, 2).rank == 4


def test_a_version_without_its_increments_is_refused() -> None:
    store = Store()
    trainer = build(store)
    store.publish(trainer, 0)
    learn(trainer, store, 1, "a")
    files = {name: data for name, data in store[1].items() if not name.startswith("trained-")}
    with pytest.raises(InputError, match=r"lacks trained-fast.safetensors"):
        build(store).restore(files)


def test_what_is_published_loads_as_one_plain_adapter() -> None:
    store = Store()
    trainer = build(store, "mean")
    store.publish(trainer, 0)
    learn(trainer, store, 1, "a")
    learn(trainer, store, 2, "b")
    adapter = trainer.policy.read_files({name: store[2][name] for name in ADAPTER_FILES})
    assert (adapter.rank, adapter.alpha) == (8, 8.0)
    with trainer.policy.reference(adapter):
        inside = trainer._logprobs(TEXTS)
    assert torch.tensor([v for row in inside for v in row]).allclose(logprobs(trainer), atol=1e-5)
    assert trainer.policy.active == FIRST
