"""The loop in rounds, end to end through the command line: what comes out, and that it is always the same (rules 1, 3, 5, 8 and 11)."""

from __future__ import annotations

import json
from pathlib import Path

import openai
import pytest

from learner.digests import adapter_digest
from learner.records import ADAPTER_FILES, AnswerSource, FinishReason, GroupState
from services.client import Client
from services.jobs.state import JobState
from tests.e2e.test_chat import QUESTION, samplers
from tests.e2e.test_service import Service
from tests.e2e.world import Outcome, World, job, start_job, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def outcome(world: World, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A job of two rounds that ran to its end; the tests look at what it left behind."""
    folder = tmp_path_factory.mktemp("rounds")
    command = start_job(folder, job(world, evaluation={"gold": "helpdesk-rubric"}), SPARRING_HOME=str(folder / "home"))
    ended = command.wait()
    assert ended.code == 0, ended.output
    assert command.leaves_nothing(), "workers outlived the command"
    return Outcome(folder / "home")


def test_a_job_leaves_versions_metrics_proofs_and_a_report(outcome: Outcome) -> None:
    assert outcome.job.state == "succeeded" and outcome.job.current_version == 2 and outcome.job.progress == 1

    counts = outcome.counts
    assert counts.balanced and counts.consumed == 24 and counts.remaining == 0, counts
    assert outcome.events("counts")[-1].data["balanced"] is True

    versions = outcome.store.versions(outcome.job.id)
    assert [version.version for version in versions] == [0, 1, 2]
    assert len({version.digest for version in versions}) == 3
    for version in versions:
        folder = outcome.paths.versions / "fast" / f"v{version.version}"
        assert adapter_digest({name: (folder / name).read_bytes() for name in ADAPTER_FILES}) == version.digest
        assert {
            "win_rate",
            "win_rate_low",
            "win_rate_high",
            "tie_rate",
            "length_controlled_win_rate",
            "length_controlled_win_rate_low",
            "length_controlled_win_rate_high",
            "gold_win_rate",
            "gold_length_controlled_win_rate",
            "kl_nats",
        } <= version.metrics.keys()
    assert sum(version.best for version in versions) == 1

    proofs = outcome.events("version_proved")
    assert {proof.data["version"] for proof in proofs} == {0, 1, 2}
    assert {proof.data["canary"] for proof in proofs} == {"passed"}
    assert outcome.paths.report.read_text().count("<svg") >= 5

    series = outcome.store.series(outcome.job.id)
    for name in ("loss", "gradient_norm", "position_bias", "pairs_per_second", "queue_ready_groups", "staleness_max"):
        assert series[name], name
    assert max(point.value or 0 for point in series["staleness_max"]) == 0


def test_every_answer_says_where_it_came_from(outcome: Outcome) -> None:
    digests = outcome.digests()
    with outcome.ledger() as ledger:
        rows = ledger.groups(state=GroupState.CONSUMED, limit=100)
    assert len(rows) == 24
    prompts: list[str] = []
    for row in rows:
        group = row.group
        assert group is not None
        prompts.append(group.prompt.id)
        assert row.produced_version == group.version + 1
        assert group.scorer.kind == "pairrm" and len(group.ordered_logits) == 3
        for answer in group.answers:
            assert answer.source is AnswerSource.POLICY and answer.module == "fast"
            assert answer.version == group.version and answer.adapter_digest == digests[group.version]
            assert answer.logprobs is not None and len(answer.logprobs) == len(answer.token_ids) <= 12
            ends_with_eos = answer.token_ids[-1] == 258
            assert ends_with_eos == (answer.finish_reason is FinishReason.STOP)
            assert 258 not in answer.token_ids[:-1], "EOS counted once"
    assert len(set(prompts)) == 24, "rounds take disjoint slices"


def test_a_version_loads_with_plain_peft(world: World, outcome: Outcome) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(world.policy)
    ids = torch.tensor([[257, 10, 20, 30]])
    before = base(input_ids=ids).logits
    adapted = PeftModel.from_pretrained(base, outcome.paths.versions / "fast" / "v1")
    assert not torch.allclose(before, adapted(input_ids=ids).logits)
    manifest = json.loads((outcome.paths.versions / "fast" / "v1" / "manifest.json").read_text())
    with torch.no_grad():
        for text in manifest["canary"]:
            logits = adapted(input_ids=torch.tensor([text["token_ids"]])).logits[0, :-1].log_softmax(-1)
            measured = logits.gather(1, torch.tensor(text["token_ids"][1:])[:, None]).squeeze(1)
            assert torch.allclose(measured, torch.tensor(text["current"]), atol=1e-4)


def test_the_same_job_gives_the_same_adapter_with_two_samplers_and_somebody_who_chats(
    world: World, outcome: Outcome, tmp_path: Path
) -> None:
    """The samplers of a deterministic job are left alone: chat with it has one of its own."""
    service = Service(world, tmp_path / "service.log")
    try:
        with Client(service.url) as client:
            job_id = client.submit(job(world, resources={"sampler": {"count": 2, "cpus": 0.4}})).id
            wait_for(lambda: client.get(job_id).current_version is not None, "version 0")
            its_own = samplers(service)
            chat = openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", timeout=300, max_retries=4)
            answer = chat.chat.completions.create(model=job_id, messages=QUESTION, max_tokens=8)
            assert answer.system_fingerprint in outcome.digests()
            assert samplers(service) - its_own, "chat has a sampler of its own"
            wait_for(lambda: client.get(job_id).state.terminal, "the job's end")
            assert client.get(job_id).state is JobState.SUCCEEDED
            assert [version.digest for version in client.versions(job_id)] == outcome.digests()
    finally:
        code = service.stop()
    assert code == 0 and service.command.leaves_nothing()
