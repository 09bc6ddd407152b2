"""Offline learning, end to end through the command line: a preference file in, versions out, and on again after a break (rules 3 and 11)."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from learner.records import AnswerSource, GroupState
from tests.e2e.world import Command, Outcome, World, run_job, start_job, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROUNDS, PAIRS = 30, 24


def offline_job(world: World, folder: Path, **schedule: Any) -> dict[str, Any]:
    """Rounds of 8 of the 24 pairs, which begin again; each round is read twice."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": f"p{n}", "prompt": f"Is {n} a number?", "chosen": f"Yes, {n} is.", "rejected": f"No, {n} is not."}
        for n in range(PAIRS)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "name": "offline",
        "policy": {"model": str(world.policy)},
        "prompts": {"source": str(folder / "pairs.jsonl")},
        "objective": {"kind": "dpo", "beta": 0.1},
        "adapters": {"rank": 8},
        "optimizer": {"learning_rate": 1e-3, "schedule": "constant", "warmup_ratio": 0.0},
        "schedule": {
            "mode": "offline",
            "rounds": ROUNDS,
            "prompts_per_round": 8,
            "prompts_per_step": 4,
            "schedule_epochs": 2,
            "stop_after_epochs": 2,
            "reuse_prompts": True,
            **schedule,
        },
        "resources": {"fleet": {"heartbeat_seconds": 0.3}},
        "seed": 7,
    }


@pytest.fixture(scope="module")
def outcome(world: World, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A job whose command was killed after some versions, and resumed to its end; the tests look at what it left behind."""
    folder = tmp_path_factory.mktemp("offline")
    home = {"SPARRING_HOME": str(folder / "home")}
    command = start_job(folder, offline_job(world, folder), **home)
    wait_for(lambda: (Outcome(folder / "home").job.current_version or 0) >= 2, "version 2")
    command.interrupt(signal.SIGKILL)
    assert command.wait(60).code == -signal.SIGKILL and command.leaves_nothing(), "workers outlived the command"
    killed = Outcome(folder / "home")
    kept = killed.digests()
    assert 3 <= len(kept) < ROUNDS + 1
    listed = Command("list", "--state", "failed", **home).wait().output
    assert killed.job.id in listed and killed.job.error is not None and killed.job.error.code == "command_killed"
    resumed = Command("resume", killed.job.id, **home)
    ended = resumed.wait()
    assert ended.code == 0, ended.output
    assert resumed.leaves_nothing(), "workers outlived the command"
    outcome = Outcome(folder / "home")
    assert outcome.digests()[: len(kept)] == kept, "versions are never overwritten"
    return outcome


def test_every_pair_is_accounted_for_and_every_version_differs(outcome: Outcome) -> None:
    assert outcome.job.state == "succeeded" and outcome.job.attempt == 2
    counts = outcome.counts
    assert counts.balanced and (counts.consumed, counts.remaining, counts.duplicates) == (8 * ROUNDS, 0, 0), counts
    assert len(set(outcome.digests())) == ROUNDS + 1
    with outcome.ledger() as ledger:
        rows = ledger.groups(state=GroupState.CONSUMED, limit=1000)
        assert ledger.check() == []
    prompts: list[str] = []
    for row in rows:
        group = row.group
        assert group is not None and row.passes == 2 and row.produced_version == row.round + 1
        prompts.append(group.prompt.id)
        assert (group.scorer.kind, group.scorer.name) == ("file", "pairs.jsonl")
        assert {(answer.source, answer.version) for answer in group.answers} == {(AnswerSource.FILE, None)}
        for answer in group.answers:
            assert answer.token_ids[-1] == 258 and 258 not in answer.token_ids[:-1], "EOS counted once"
    assert all(prompts.count(f"p{n}") == 8 * ROUNDS // PAIRS for n in range(PAIRS)), "each pass takes every pair once"


def test_no_sampler_and_no_scorer_was_started(outcome: Outcome) -> None:
    logs = [path.name for path in outcome.paths.logs.iterdir()]
    started = {role for role in ("sampler", "scorer", "learner") if any(f"-{role}" in name for name in logs)}
    assert started == {"learner"}, logs
    assert not outcome.events("version_proved") and not outcome.events("evaluated")
    assert outcome.paths.report.read_text().count("<svg") >= 3


def test_accuracy_on_the_pairs_rises_and_the_loss_falls(outcome: Outcome) -> None:
    series = outcome.store.series(outcome.job.id, ["accuracy", "loss"], max_points=10_000)
    accuracy, loss = ([point.value or 0 for point in series[name]] for name in ("accuracy", "loss"))
    assert accuracy[0] == 0, "version 0 is its own reference: no margin is above 0"
    assert sum(accuracy[-8:]) / 8 > 0.9
    assert sum(loss[-8:]) / 8 < 0.5 * loss[0]


def test_the_newest_version_loads_with_plain_peft_and_prefers_the_chosen_answers(
    world: World, outcome: Outcome
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(world.policy)
    with outcome.ledger() as ledger:
        groups = [row.group for row in ledger.groups(round=0, limit=100)]

    def margins(model: Any) -> list[float]:
        found = []
        for group in groups:
            assert group is not None
            logps = []
            for answer in group.answers:
                ids = torch.tensor([[*group.prompt_token_ids, *answer.token_ids]])
                with torch.no_grad():
                    logits = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
                picked = logits.gather(1, ids[0, 1:, None])[-len(answer.token_ids) :]
                logps.append(float(picked.sum()))
            found.append(logps[0] - logps[1])
        return found

    before = margins(base)
    adapted = PeftModel.from_pretrained(base, outcome.paths.versions / "fast" / f"v{ROUNDS}")
    assert all(after > then for after, then in zip(margins(adapted), before, strict=True))


def test_a_file_without_answers_is_refused_before_anything_starts(world: World, tmp_path: Path) -> None:
    spec = offline_job(world, tmp_path)
    spec["prompts"]["source"] = str(world.root / "prompts.jsonl")
    ended = run_job(tmp_path, spec)
    assert ended.code == 2 and "there is no field 'chosen', which offline jobs need" in ended.output


def test_with_held_out_prompts_samplers_and_scorer_run_to_evaluate_and_for_nothing_else(
    world: World, tmp_path: Path
) -> None:
    spec = offline_job(world, tmp_path, rounds=1) | {
        "scorer": {"model": {"kind": "pairrm", "model": str(world.pairrm)}},
        "sampling": {"max_tokens": 12},
        "evaluation": {"prompts": {"source": str(world.root / "held_out.jsonl")}, "count": 24},
    }
    spec["resources"] |= {
        "sampler": {"cpus": 0.5, "kv_cache_gib": 0.25},
        "scorer": {"cpus": 0.2},
        "learner": {"cpus": 0.3},
    }
    ended = run_job(tmp_path, spec)
    assert ended.code == 0, ended.output
    outcome = Outcome()
    assert [event.data["version"] for event in outcome.events("evaluated")] == [0, 1]
    assert {event.data["canary"] for event in outcome.events("version_proved")} == {"passed"}
    with outcome.ledger() as ledger:
        groups = [row.group for row in ledger.groups(limit=100)]
    assert len(groups) == 8
    assert {answer.source for group in groups if group for answer in group.answers} == {AnswerSource.FILE}
