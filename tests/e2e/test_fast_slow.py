"""Two adapters over three domains, end to end: both write, both are proved, and the domains' combination is served (rules 1, 4, 5 and 6)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from learner.digests import adapter_digest
from learner.records import ADAPTER_FILES, GroupState, ScoredGroup
from tests.e2e.world import Outcome, World, job, run_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DOMAINS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def outcome(world: World, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A job of one round in each domain; versions 3 and 5 are combinations."""
    folder = tmp_path_factory.mktemp("fast-slow")
    for name, count in (("prompts", 60), ("held_out", 24)):
        lines = [
            {"id": f"{name}{n}", "prompt": f"Tell me about {name} {n * 7919 % 1000}.", "domain": DOMAINS[n % 3]}
            for n in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    spec = job(
        world,
        prompts={"source": str(folder / "prompts.jsonl")},
        objective={"kind": "chase", "inner": {"kind": "dpo"}},
        adapters={"slow": "chase", "swap_by": "win-rate", "swap_interval": 2},
        sampling={"answers": 3, "policy": "both"},
        schedule={"rounds": 1, "domains": list(DOMAINS), "combine": "cofs", "memory_share": 0.5},
        evaluation={"prompts": {"source": str(folder / "held_out.jsonl")}, "count": 24, "every": 10},
    )
    spec["objective"].pop("beta")
    ended = run_job(folder, spec, SPARRING_HOME=str(folder / "home"))
    assert ended.code == 0, ended.output
    return Outcome(folder / "home")


def groups(outcome: Outcome) -> list[ScoredGroup]:
    with outcome.ledger() as ledger:
        return [row.group for row in ledger.groups(state=GroupState.CONSUMED, limit=100) if row.group is not None]


def test_both_adapters_of_every_version_are_published_and_proved(outcome: Outcome) -> None:
    assert outcome.job.state == "succeeded" and outcome.job.current_version == 5
    assert outcome.counts.balanced and outcome.counts.consumed == 36
    versions = outcome.store.versions(outcome.job.id)
    assert [(version.version, version.module) for version in versions] == [
        (number, module) for number in range(6) for module in ("fast", "slow")
    ]
    for version in versions:
        folder = outcome.paths.versions / version.module / f"v{version.version}"
        assert adapter_digest({name: (folder / name).read_bytes() for name in ADAPTER_FILES}) == version.digest
    proofs = outcome.events("version_proved")
    assert {(proof.data["version"], proof.data["module"]) for proof in proofs} == {
        (version.version, version.module) for version in versions
    }
    trained = [proof for proof in proofs if proof.data["version"] in (1, 2, 4)]
    assert {proof.data["canary"] for proof in trained} == {"passed"}


def test_both_adapters_write_and_the_win_rate_between_them_is_told(outcome: Outcome) -> None:
    digests = {(v.module, v.version): v.digest for v in outcome.store.versions(outcome.job.id)}
    odd = {"fast": 0, "slow": 0}
    for group in groups(outcome):
        writers = [answer.module for answer in group.answers]
        assert sorted(set(map(str, writers))) == ["fast", "slow"]
        odd["fast" if writers.count("fast") == 2 else "slow"] += 1
        for answer in group.answers:
            assert answer.module is not None and answer.version == group.version
            assert answer.adapter_digest == digests[answer.module, group.version]
    assert odd["fast"] == odd["slow"] == 18, "the odd answer comes by turns"
    rates = [point.value for point in outcome.store.series(outcome.job.id)["fast_vs_slow_win_rate"]]
    assert len(rates) == 9 and all(rate is not None and 0 < rate < 1 for rate in rates)


def test_each_round_learns_from_its_domain_only(outcome: Outcome) -> None:
    by_round: dict[int, set[str | None]] = {}
    for group in groups(outcome):
        by_round.setdefault(group.round, set()).add(group.prompt.domain)
    assert by_round == {0: {"red"}, 1: {"green"}, 3: {"blue"}}


def test_a_combination_has_its_weights_told_and_every_domain_its_win_rate(outcome: Outcome) -> None:
    first, second = outcome.events("combined")
    assert (first.data["version"], second.data["version"]) == (3, 5)
    weights = [value for name, value in second.data["metrics"].items() if name.startswith("combination_weight/")]
    assert len(weights) == 3 and sum(weights) == pytest.approx(1)
    ends = {v.version: v.metrics for v in outcome.store.versions(outcome.job.id) if v.module == "fast"}
    for version in (0, 1, 3, 5):
        assert {f"win_rate/{domain}" for domain in DOMAINS} <= ends[version].keys(), version


def test_the_served_combination_gives_the_log_probabilities_of_its_files(world: World, outcome: Outcome) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    written = [group for group in groups(outcome) if group.version == 3]
    assert len(written) == 12
    for module in ("fast", "slow"):
        base = AutoModelForCausalLM.from_pretrained(world.policy)
        policy = PeftModel.from_pretrained(base, outcome.paths.versions / module / "v3")
        worst = 0.0
        for group in written:
            for answer in group.answers:
                if answer.module != module or answer.logprobs is None:
                    continue
                ids = torch.tensor([[*group.prompt_token_ids, *answer.token_ids]])
                with torch.no_grad():
                    logits = policy(input_ids=ids).logits[0, :-1].log_softmax(-1)
                own = logits.gather(1, ids[0, 1:, None]).squeeze(1)[-len(answer.token_ids) :]
                worst = max(worst, float((own - torch.tensor(answer.logprobs)).abs().max()))
        assert 0 < worst < 1e-3, module


def test_both_adapters_are_exported_by_name(outcome: Outcome, tmp_path: Path) -> None:
    from services.adapters import adapter_files

    fast, slow = (adapter_files(outcome.job, 4, module) for module in ("fast", "slow"))  # type: ignore[arg-type]
    assert fast["adapter_config.json"] == slow["adapter_config.json"]
    assert fast["adapter_model.safetensors"] != slow["adapter_model.safetensors"]
    assert json.loads(fast["adapter_config.json"])["r"] <= 24
