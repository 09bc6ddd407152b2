"""What `sparring export` writes."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from job_world import fill_ledger, publish, running_job
from typer.testing import CliRunner

from learner.errors import InputError
from services.cli.export import write_preferences
from services.cli.main import app
from services.jobs.store import JobStore
from services.settings import Settings


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobStore:
    monkeypatch.setenv("SPARRING_HOME", str(tmp_path / "home"))
    return JobStore(Settings.load().store_url)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def test_preferences_are_the_best_and_the_worst_of_what_was_learned_from(
    store: JobStore, home: Path, tmp_path: Path
) -> None:
    job_id = running_job(store, home)
    fill_ledger(home, job_id, 4, consumed=3)
    path = tmp_path / "out" / "preferences.parquet"
    result = CliRunner().invoke(app, ["export", job_id, "--preferences", str(path)])
    assert result.exit_code == 0 and "3 pairs" in result.output
    rows = pq.read_table(path).to_pylist()
    assert [row["prompt"] for row in rows] == [f"Question {place}?" for place in range(3)]
    assert rows[1]["chosen"] == "answer 0 to 1" and rows[1]["rejected"] == "answer 2 to 1"
    assert rows[1]["chosen_score"] > 0.5 > rows[1]["rejected_score"]
    assert rows[1]["prompt_id"] == "p1" and rows[1]["version"] == 0


def test_preferences_go_by_the_scorer_also_where_the_objective_keeps_the_order_of_its_file(
    store: JobStore, home: Path, tmp_path: Path
) -> None:
    offline = {"mode": "offline", "rounds": 1, "prompts_per_round": 8, "prompts_per_step": 4}
    job_id = running_job(store, home, objective={"kind": "nash-md"}, schedule=offline)
    fill_ledger(home, job_id, 1, consumed=1, last_wins=True)
    path = tmp_path / "preferences.parquet"
    assert write_preferences(store.get(job_id), path) == 1
    (row,) = pq.read_table(path).to_pylist()
    assert row["rejected"] == "answer 0 to 0" and row["chosen"] != row["rejected"]
    assert row["chosen_score"] > row["rejected_score"]


def test_preferences_as_messages_keep_every_turn(store: JobStore, home: Path, tmp_path: Path) -> None:
    job_id = running_job(store, home)
    fill_ledger(home, job_id, 1, consumed=1, system="Be kind.")
    path = tmp_path / "preferences.parquet"
    with pytest.raises(InputError, match="prompt p0 has 2 messages, which plain text cannot say; add --messages"):
        write_preferences(store.get(job_id), path)
    assert list(tmp_path.glob("*.parquet*")) == []
    assert write_preferences(store.get(job_id), path, messages=True) == 1
    (row,) = pq.read_table(path).to_pylist()
    assert row["prompt"] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Question 0?"}]
    assert row["chosen"] == [{"role": "assistant", "content": "answer 0 to 0"}]


def test_nothing_learned_is_said(store: JobStore, home: Path, tmp_path: Path) -> None:
    job_id = running_job(store, home)
    path = tmp_path / "preferences.parquet"
    with pytest.raises(InputError, match="no replay ledger"):
        write_preferences(store.get(job_id), path)
    fill_ledger(home, job_id, 2, consumed=1)
    with pytest.raises(InputError, match="no groups to export"):
        write_preferences(store.get(job_id), path, version=5)
    assert not path.exists()


def test_an_adapter_is_copied_and_the_best_version_is_meant(store: JobStore, home: Path, tmp_path: Path) -> None:
    job_id = running_job(store, home)
    published = [publish(home, job_id, version) for version in range(2)]
    for version in range(2):
        store.add_version(job_id, version, digest=str(version), learner_step=version)
    store.mark_best(job_id, 0)
    folder = tmp_path / "adapter"
    result = CliRunner().invoke(app, ["export", job_id, "--adapter", str(folder)])
    assert result.exit_code == 0 and "version 0" in result.output
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: published[0][name] for name in ("adapter_config.json", "adapter_model.safetensors")
    }
    again = CliRunner().invoke(app, ["export", job_id, "--adapter", str(folder)])
    assert isinstance(again.exception, InputError) and "not empty" in str(again.exception)


@pytest.mark.parametrize("option", ["--adapter", "--preferences"])
def test_a_place_that_cannot_be_written_is_refused(store: JobStore, home: Path, tmp_path: Path, option: str) -> None:
    job_id = running_job(store, home)
    fill_ledger(home, job_id, 1, consumed=1)
    publish(home, job_id, 0)
    store.add_version(job_id, 0, digest="d", learner_step=0)
    file = tmp_path / "file"
    file.write_text("in the way")
    for place in (file / "x", tmp_path if option == "--preferences" else file):
        result = CliRunner().invoke(app, ["export", job_id, option, str(place)])
        assert isinstance(result.exception, InputError) and str(place) in str(result.exception), result.exception
    assert file.read_text() == "in the way" and list(tmp_path.glob("*.part")) == []


def test_a_merged_model_answers_as_the_base_with_its_adapter(store: JobStore, home: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    torch.manual_seed(0)
    base_folder = tmp_path / "base"
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    base = LlamaForCausalLM(config)
    base.save_pretrained(base_folder)
    tokenizer = Tokenizer(models.WordLevel({f"w{place}": place for place in range(16)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(base_folder)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    names = ("adapter_config.json", "adapter_model.safetensors")
    files = {name: (tmp_path / "adapter" / name).read_bytes() for name in names}
    job_id = running_job(store, home, policy={"model": str(base_folder)})
    publish(home, job_id, 0, files)
    store.add_version(job_id, 0, digest="d", learner_step=0)
    result = CliRunner().invoke(app, ["export", job_id, "--merged", str(tmp_path / "merged")])
    assert result.exit_code == 0, result.exception
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    plain = LlamaForCausalLM.from_pretrained(base_folder)
    loaded = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base_folder), str(tmp_path / "adapter"))
    ids = torch.arange(16)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, loaded(ids).logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(merged(ids).logits, plain(ids).logits, atol=1e-3)
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


def test_nothing_named_is_said(store: JobStore, home: Path) -> None:
    job_id = running_job(store, home)
    result = CliRunner().invoke(app, ["export", job_id])
    assert isinstance(result.exception, InputError) and "name --adapter DIR" in str(result.exception)
    result = CliRunner().invoke(app, ["export", job_id, "--adapter", "x"])
    assert isinstance(result.exception, InputError) and "published no version yet" in str(result.exception)
