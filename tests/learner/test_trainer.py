"""The trainer learns, refuses what makes no sense, and goes on exactly where a snapshot stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from learner.errors import InputError
from learner.objectives import BatchStatistics, PreferenceBatch, objective_kinds
from learner.objectives.base import Evaluation
from learner.objectives.wrappers import BetaStatistics
from learner.records import ADAPTER_FILES, Module, ScoredGroup
from learner.trainer import Snapshot, Trainer
from tests.learner.builders import answer, bradley_terry, group, random_groups, tiny_model, trainer_config


class Store(dict[int, Mapping[str, bytes]]):
    """Published versions, kept in memory."""

    def __init__(self, published: Mapping[int, Mapping[str, bytes]] | None = None) -> None:
        super().__init__(published or {})
        self.slow: dict[int, Mapping[str, bytes]] = {}

    def publish(self, trainer: Trainer, version: int) -> Snapshot:
        snapshot = trainer.snapshot(version)
        self[version] = snapshot.files
        if snapshot.slow is not None:
            self.slow[version] = snapshot.slow.files
        return snapshot

    def fetch(self, module: Module, version: int) -> Mapping[str, bytes]:
        return (self if module == "fast" else self.slow)[version]


def build(store: Store | None = None, **changes: Any) -> Trainer:
    store = Store() if store is None else store
    return Trainer(trainer_config(**changes), store.fetch, base=tiny_model())


def rounds(trainer: Trainer, store: Store, first: int, last: int) -> list[Snapshot]:
    """Run rounds first..last, publishing one version each."""
    snapshots = []
    for number in range(first, last + 1):
        trainer.begin_version(number, number - 1)
        groups = random_groups(8, seed=number, version=number - 1, round=number)
        trainer.step(groups[:4], number - 1)
        trainer.step(groups[4:], number - 1)
        snapshots.append(store.publish(trainer, number))
    return snapshots


NOT_FOR_A_TRAINER = {"chase": "it needs two modules", "nash-md": "it rewards what its first answer was, good or bad"}
SMALL_MODEL: dict[str, dict[str, Any]] = {"sppo": {"beta": 0.05}, "ipo": {"tau": 0.25}, "mallows": {"beta": 0.5}}
"""Values for a model of this size, where the defaults are for large ones."""


@pytest.mark.parametrize(
    "objective",
    [{"kind": kind, **SMALL_MODEL.get(kind, {})} for kind in objective_kinds() if kind not in NOT_FOR_A_TRAINER]
    + [{"kind": "dr-dpo", "inner": {"kind": "tdpo"}}, {"kind": "wpo", "inner": {"kind": "simpo"}}],
    ids=lambda objective: "-".join(str(v) for v in objective.values()),
)
def test_learning_raises_the_chosen_answers_over_the_rejected_ones(objective: dict[str, Any]) -> None:
    trainer = build(objective=objective)
    trainer.begin_version(1, 0)
    groups = random_groups(4)
    reports = [trainer.step(groups, 0) for _ in range(12)]
    first, last = reports[0], reports[-1]
    if objective["kind"] not in ("simpo", "beta-dpo") and "inner" not in objective:
        assert first.metrics["margin"] == pytest.approx(0, abs=1e-4)
    per_token = "simpo" in str(objective)
    assert last.metrics["margin"] > first.metrics["margin"] + (0.1 if per_token else 0.5)
    assert last.metrics["accuracy"] > 0.9
    assert last.metrics["loss"] < first.metrics["loss"]
    assert last.learner_step == 12
    assert first.pairs == 4
    assert {"chosen_logp", "rejected_logp", "chosen_logp_change", "rejected_logp_change", "gradient_norm"} <= set(
        first.metrics
    )


@pytest.mark.parametrize("rule", ["all-pairs", "random-pair", "did"])
def test_every_pairing_rule_is_learned_from(rule: str) -> None:
    trainer = build(objective={"kind": "dpo"}, pairing={"rule": rule})
    trainer.begin_version(1, 0)
    groups = random_groups(4)
    reports = [trainer.step(groups, 0) for _ in range(12)]
    assert reports[-1].metrics["margin"] > 0.5
    assert reports[0].metrics["records"] == (12 if rule == "all-pairs" else 4)


def test_objectives_read_only_what_they_require(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build(objective={"kind": "simpo"})
    trainer.begin_version(1, 0)

    def never(*_: object) -> None:
        raise AssertionError("a reference pass")

    monkeypatch.setattr(trainer.policy, "reference", never)
    assert trainer.step(random_groups(4), 0).pairs == 4


def test_two_runs_give_the_same_bytes() -> None:
    digests = []
    for _ in range(2):
        store = Store()
        trainer = build(store)
        digests.append([store.publish(trainer, 0).digest, *(s.digest for s in rounds(trainer, store, 1, 2))])
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 3


@pytest.mark.parametrize(
    ("kind", "objective"), [("adamw", "sppo"), ("rmsprop", "sppo"), ("adamw", "alpha-dpo"), ("adamw", "beta-dpo")]
)
def test_going_on_from_a_restored_snapshot_gives_the_same_bytes(kind: str, objective: str) -> None:
    changes: dict[str, Any] = {
        "objective": {"kind": objective},
        "adapters": {"rank": 4, "alpha": 8, "dropout": 0.2},
        "optimizer": {"kind": kind, "learning_rate": 5e-3, "span": "job"},
        "schedule": {"rounds": 3, "prompts_per_round": 8, "prompts_per_step": 4},
    }
    store = Store()
    trainer = build(store, **changes)
    store.publish(trainer, 0)
    through = rounds(trainer, store, 1, 3)
    again = build(store, **changes)
    again.restore(store[1])
    assert again.learner_step == 2
    restored = rounds(again, Store(store), 2, 3)
    for one, other in zip(through[1:], restored, strict=True):
        assert one.files == other.files
        assert one.canary == other.canary


@pytest.mark.parametrize(
    "objective",
    [
        {"kind": "sppo", "beta": 0.05, "answers": "all"},
        {"kind": "tdpo", "version": 1, "reference": "round"},
        {"kind": "kto-pair", "detach_kl": False},
        {"kind": "beta-dpo", "filter_share": 0.4},
        {"kind": "dr-dpo", "inner": {"kind": "tdpo"}},
        {"kind": "mallows"},
        {"kind": "wpo"},
    ],
    ids=lambda objective: objective["kind"],
)
def test_any_token_budget_gives_the_same_gradient(objective: dict[str, Any]) -> None:
    gradients = []
    for budget in (64, 100, 4096):
        base = tiny_model().double()
        config = trainer_config(
            objective=objective,
            pairing={"rule": "all" if "answers" in objective else "all-pairs"},
            learner={"device": "cpu", "micro_batch_tokens": budget},
        )
        trainer = Trainer(config, Store().fetch, base=base)
        trainer.policy.model.double()
        for weight in trainer.policy.parameters.values():
            weight.data += 0.01
        trainer.begin_version(1, 0)
        seen: list[torch.Tensor] = []

        def keep(*_: Any, trainer: Trainer = trainer, seen: list[torch.Tensor] = seen) -> float:
            seen.extend(w.grad.clone() for w in trainer.policy.parameters.values() if w.grad is not None)
            return 0.0

        trainer.fast.step = keep  # type: ignore[method-assign]
        trainer.step(random_groups(6, answers=4), 0)
        gradients.append(torch.cat([gradient.flatten() for gradient in seen]))
    assert gradients[0].abs().max() > 1e-3
    for other in gradients[1:]:
        torch.testing.assert_close(gradients[0], other, atol=1e-9, rtol=1e-9)


def test_gradient_checkpointing_changes_nothing() -> None:
    files = []
    for checkpointing in (False, True):
        trainer = build(learner={"device": "cpu", "gradient_checkpointing": checkpointing})
        trainer.begin_version(1, 0)
        trainer.step(random_groups(4), 0)
        files.append(load(trainer.snapshot(1).files["adapter_model.safetensors"]))
    for name, value in files[0].items():
        torch.testing.assert_close(value, files[1][name], atol=1e-5, rtol=0)


def test_the_snapshot_is_a_plain_peft_adapter(tmp_path: Path) -> None:
    from peft import PeftModel

    store = Store()
    trainer = build(store)
    store.publish(trainer, 0)
    snapshot = rounds(trainer, store, 1, 1)[0]
    for name in ADAPTER_FILES:
        (tmp_path / name).write_bytes(snapshot.files[name])
    config = json.loads(snapshot.files["adapter_config.json"])
    assert config["target_modules"] == sorted(config["target_modules"])
    assert "lm_head" not in config["target_modules"]
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path).eval()
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        expected = torch.log_softmax(loaded(input_ids=ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
    found = trainer.answer_logprobs([([1], [2, 3, 4, 5])])[0]
    assert found == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_job_can_start_from_another_jobs_version(tmp_path: Path) -> None:
    store = Store()
    trainer = build(store)
    store.publish(trainer, 0)
    files = rounds(trainer, store, 1, 1)[0].files
    for name in ADAPTER_FILES:
        (tmp_path / name).write_bytes(files[name])
    policy = {"model": "tiny", "adapter": str(tmp_path)}
    second = build(policy=policy, objective={"kind": "dpo"})
    assert second.snapshot(0).files["adapter_model.safetensors"] == files["adapter_model.safetensors"]
    second.begin_version(1, 0)
    assert second.step(random_groups(4), 0).metrics["margin"] == pytest.approx(0, abs=1e-4)
    with pytest.raises(
        InputError, match=r"adapters\.rank: 8 differs from the start adapter's 4; set adapters\.rank: 4"
    ):
        build(policy=policy, adapters={"rank": 8, "alpha": 8})
    with pytest.raises(InputError, match=r"adapters\.target_modules"):
        build(policy=policy, adapters={"rank": 4, "alpha": 8, "target_modules": ["q_proj"]})
    (tmp_path / ADAPTER_FILES[1]).unlink()
    with pytest.raises(InputError, match="lacks adapter_model"):
        build(policy=policy)


def test_the_initial_weights_depend_on_the_seed_alone() -> None:
    first, second = build().snapshot(0), build().snapshot(0)
    torch.manual_seed(99)
    third = build().snapshot(0)
    assert first.files == second.files == third.files
    assert build(seed=4).snapshot(0).digest != first.digest


@pytest.mark.parametrize("reference", ["round", "behaviour"])
def test_the_references_are_the_versions_that_they_name(reference: str) -> None:
    store = Store()
    trainer = build(store, objective={"kind": "dpo", "reference": reference})
    store.publish(trainer, 0)
    rounds(trainer, store, 1, 2)
    trainer.begin_version(3, 2)
    version = 2 if reference == "round" else 1
    groups = random_groups(4, seed=9, version=version)
    examples_margin = trainer.step(groups, 2).metrics["margin"]
    if reference == "round":
        assert examples_margin == pytest.approx(0, abs=1e-4)
    else:
        assert abs(examples_margin) > 1e-3
    assert trainer.answer_logprobs([([1], [2, 3])], 0) == trainer.answer_logprobs([([1], [2, 3])], "base")


def test_a_reference_pass_leaves_the_adapter_trainable_and_the_gradient_whole() -> None:
    store = Store()
    trainer = build(store, adapters={"rank": 4, "alpha": 8, "dropout": 0.5})
    store.publish(trainer, 0)
    rounds(trainer, store, 1, 2)
    once = trainer.answer_logprobs([([1], [2, 3, 4])], 1)
    assert once == trainer.answer_logprobs([([1], [2, 3, 4])], 1)
    assert all(weight.requires_grad for weight in trainer.policy.parameters.values())
    assert all(not w.requires_grad for n, w in trainer.policy.model.named_parameters() if ".first." not in n)
    trainer.begin_version(3, 2)
    assert trainer.step(random_groups(4, version=2), 2).metrics["gradient_norm"] > 0


def test_references_are_computed_once_for_all_passes_of_a_round() -> None:
    trainer = build(
        schedule={"prompts_per_round": 4, "prompts_per_step": 4, "schedule_epochs": 2, "stop_after_epochs": 2}
    )
    trainer.begin_version(1, 0)
    groups = random_groups(4)
    trainer.step(groups, 0)
    kept = dict(trainer.references._cache)
    assert len(kept) == 4
    trainer.step(groups, 0)
    assert trainer.references._cache == kept
    trainer.begin_version(2, 1)
    assert trainer.references._cache == {}


def test_sppo_learns_only_from_the_rounds_own_answers() -> None:
    trainer = build()
    trainer.begin_version(1, 0)
    with pytest.raises(InputError, match="not from the round's version 0"):
        trainer.step(random_groups(2, version=1), 1)


def test_answers_from_outside_have_no_behaviour_policy() -> None:
    trainer = build(objective={"kind": "dpo", "reference": "behaviour"})
    trainer.begin_version(1, 0)
    outside = group([answer([4, 5], None), answer([6], None)], bradley_terry([1, 0]))
    with pytest.raises(InputError, match="from outside carry no version"):
        trainer.step([outside], 0)
    trainer = build(objective={"kind": "dpo"})
    report = trainer.step([outside], 0)
    assert report.pairs == 1
    assert "chosen_logp_change" not in report.metrics


def test_a_batch_without_a_usable_pair_makes_no_step() -> None:
    trainer = build()
    same = group([answer([4, 5]), answer([4, 5])], bradley_terry([0, 0]))
    before = trainer.snapshot(0).digest
    report = trainer.step([same], 0)
    assert (report.pairs, report.learner_step, report.metrics) == (0, 0, {"pairs": 0.0})
    assert trainer.snapshot(0).digest == before


def test_sppo_trains_on_all_answers_when_asked_also_where_some_were_dropped() -> None:
    trainer = build(objective={"kind": "sppo", "beta": 0.05, "answers": "all"}, truncated="drop")
    trainer.begin_version(1, 0)
    answers = [answer([4, 5]), answer([6]), answer([7, 7, 7], truncated=True)]
    short = group(answers, bradley_terry([1, 0, 3]), index=9)
    report = trainer.step([short, *random_groups(3, answers=4)], 0)
    assert report.pairs == 4
    assert report.metrics["answer_length_tokens"] > 1


def test_staleness_counts_from_the_newest_version() -> None:
    trainer = build(objective={"kind": "dpo"})
    metrics = trainer.step([*random_groups(1, version=2), *random_groups(1, version=4)], 5).metrics
    assert (metrics["staleness_mean"], metrics["staleness_max"]) == (2.0, 3.0)


def test_the_canary_records_what_version_previous_and_base_say() -> None:
    store = Store()
    trainer = build(store)
    trainer.add_canary_candidates([(1, 5, 6, 7), (1, 8)])
    first = store.publish(trainer, 0).canary
    assert [text.previous for text in first] == [None, None]
    assert all(text.current == text.base for text in first)
    canary = rounds(trainer, store, 1, 2)[1].canary
    assert 1 <= len(canary) <= 8
    moved = [sum(abs(a - b) for a, b in zip(t.current, t.previous or (), strict=True)) for t in canary]
    assert moved == sorted(moved, reverse=True)
    assert moved[0] > 1e-2
    again = trainer.answer_logprobs([(canary[0].token_ids[:1], canary[0].token_ids[1:])], 1)[0]
    assert canary[0].previous == pytest.approx(again, abs=1e-5)


def test_files_of_a_version_without_state_cannot_be_restored() -> None:
    trainer = build()
    files = trainer.snapshot(0).files
    with pytest.raises(InputError, match=r"trainer_state\.json"):
        build().restore({name: files[name] for name in ADAPTER_FILES})


def test_a_layer_that_the_model_lacks_is_refused_with_a_choice() -> None:
    with pytest.raises(InputError, match=r"lm_head is not among .* choose from down_proj, gate_proj, k_proj"):
        build(adapters={"target_modules": ["q_proj", "lm_head"]})


def test_a_missing_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"policy\.model: .*missing cannot be loaded"):
        Trainer(trainer_config(policy={"model": str(tmp_path / "missing")}), Store().fetch)


def test_a_saved_model_loads_from_its_folder(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    trainer = Trainer(trainer_config(policy={"model": str(tmp_path)}), Store().fetch)
    assert trainer.answer_logprobs([([1], [2, 3])])[0] == pytest.approx(
        build().answer_logprobs([([1], [2, 3])])[0], abs=1e-6
    )


def given_pairs(count: int) -> list[ScoredGroup]:
    """Pairs from a file: no version wrote them."""
    return [
        group([answer([5, 6, 7 + i % 5], version=None), answer([9, 8, 7], version=None)], bradley_terry([9, 0]), i)
        for i in range(count)
    ]


@pytest.mark.parametrize("kind", ["dpo", "sppo", "simpo", "s-dpo", "nash-md"])
def test_answers_of_a_file_are_learned_from(kind: str) -> None:
    trainer = build(
        objective={"kind": kind} | ({"beta": 0.05} if kind == "sppo" else {}),
        schedule={"mode": "offline", "rounds": 2, "prompts_per_round": 8, "prompts_per_step": 4},
    )
    trainer.begin_version(1, 0)
    reports = [trainer.step(given_pairs(4), 0) for _ in range(12)]
    assert reports[-1].metrics["margin"] > reports[0].metrics["margin"] + 0.1
    assert "staleness_mean" not in reports[0].metrics


def test_an_opponents_answers_have_no_staleness() -> None:
    trainer = build(objective={"kind": "xpo"}, opponent=0)
    trainer.begin_version(3, 3)
    groups = [group([answer([5, 6], 3), answer([7, 8], 0)], bradley_terry([1, 0]), i) for i in range(4)]
    metrics = trainer.step(groups, 3).metrics
    assert metrics["staleness_max"] == 0


def test_nash_md_lowers_the_policys_own_answer_where_it_loses() -> None:
    trainer = build(
        objective={"kind": "nash-md"},
        schedule={"mode": "offline", "rounds": 2, "prompts_per_round": 8, "prompts_per_step": 4},
    )
    trainer.begin_version(1, 0)
    groups = [
        group([answer([5, 6, 7 + i], version=None), answer([9, 8, 7], version=None)], bradley_terry([0, 9]), i)
        for i in range(4)
    ]
    own = [(g.prompt_token_ids, g.answers[0].token_ids) for g in groups]
    before = [sum(row) for row in trainer.answer_logprobs(own)]
    metrics = [trainer.step(groups, 0).metrics for _ in range(6)][-1]
    after = [sum(row) for row in trainer.answer_logprobs(own)]
    assert metrics["win_probability"] == pytest.approx(1e-4, abs=1e-4)
    assert all(now < then - 0.1 for now, then in zip(after, before, strict=True))


def test_the_policys_own_answers_have_an_age_also_where_they_are_of_the_opponents_version() -> None:
    trainer = build(objective={"kind": "xpo"}, opponent=0)
    trainer.begin_version(1, 1)
    metrics = trainer.step(random_groups(4, version=0), 1).metrics
    assert (metrics["staleness_mean"], metrics["staleness_max"]) == (1.0, 1.0)


def test_statistics_of_a_batch_are_of_the_dropout_masks_that_its_losses_have() -> None:
    trainer = build(
        objective={"kind": "beta-dpo", "filter_share": 0.0}, adapters={"rank": 4, "alpha": 8, "dropout": 0.5}
    )
    trainer.begin_version(1, 0)
    for _ in range(3):
        trainer.step(random_groups(6), 0)
    objective, found = trainer.fast.objective, []
    evaluate = objective.evaluate

    def watch(batch: PreferenceBatch, stats: BatchStatistics) -> Evaluation:
        assert isinstance(stats, BetaStatistics) and batch.positions is not None
        found.append((objective.margins(batch).double(), stats.margins[batch.positions]))
        return evaluate(batch, stats)

    objective.evaluate = watch  # type: ignore[method-assign]
    trainer.step(random_groups(6), 0)
    assert len(found) > 1
    for learned, known in found:
        torch.testing.assert_close(learned, known)
