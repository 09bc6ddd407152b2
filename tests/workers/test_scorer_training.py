"""Reading preference pairs, training a PairRM from them, and the command that does both."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from learner.errors import InputError
from learner.records import Message, Prompt
from services.cli.scorer import app
from tests.workers.scorer_samples import TEXTS
from workers.config import PairRMScorer
from workers.scorers.base import Comparison
from workers.scorers.build import build_scorer
from workers.scorers.new_tokenizer import train_tokenizer
from workers.scorers.preferences import PreferencePair, read_preferences, split_by_prompt
from workers.scorers.training import train_pairrm
from workers.scorers.training_config import ScorerReport, TrainProgress, TrainScorerConfig

torch.set_num_threads(1)

REAL_PAIRS = Path(__file__).parents[3] / "shared" / "data" / "alpaca_eval_preferences.jsonl"


def polite_pairs(count: int, seed: int = 0) -> list[PreferencePair]:
    """Pairs that differ in whether the answer says please or is rude."""
    rng = random.Random(seed)
    words = ["red", "blue", "green", "old", "new", "small", "large", "warm", "cold"]
    pairs = []
    for index in range(count):
        thing = f"{rng.choice(words)} {rng.choice(words)} thing"
        kind, rude = f"please take the {thing}", f"go away with the {thing}"
        better_first = rng.random() < 0.5
        answers = (kind, rude) if better_first else (rude, kind)
        pairs.append(PreferencePair(Prompt.of(str(index), f"{index} {thing}?"), *answers, 0.0 if better_first else 1.0))
    return pairs


def quick(**changes: object) -> TrainScorerConfig:
    return TrainScorerConfig.model_validate(
        {"steps": 40, "batch_size": 16, "vocabulary": 400, "held_out": 0.25, "threads": 1, "device": "cpu", **changes}
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ScorerReport]:
    folder = tmp_path_factory.mktemp("trained") / "scorer"
    return folder, train_pairrm(quick(), polite_pairs(240), folder)


def test_a_new_pairrm_learns_and_its_report_says_so(trained: tuple[Path, ScorerReport]) -> None:
    folder, report = trained
    assert report.accuracy is not None and report.accuracy > 0.95
    assert report.position_bias < 0.5
    assert (report.training_pairs, report.held_out_pairs) == (180, 60)
    assert ScorerReport.model_validate_json((folder / "report.json").read_text()) == report
    answers = ("go away with the old red thing", "please take the old red thing")
    asked = Comparison(Prompt.of("p", "7 old red thing?"), answers)
    scorer = build_scorer(PairRMScorer(model=str(folder)), device="cpu")
    logits = scorer.score([asked])[0].ordered_logits
    assert logits[0, 1] < logits[1, 0]
    assert scorer.identity.version == report.weights_sha256


def test_equal_seeds_give_equal_weights(trained: tuple[Path, ScorerReport], tmp_path: Path) -> None:
    torch.manual_seed(12345)
    again = train_pairrm(quick(), polite_pairs(240), tmp_path / "again")
    assert again.weights_sha256 == trained[1].weights_sha256
    other = train_pairrm(quick(seed=1, steps=2), polite_pairs(240), tmp_path / "other")
    assert other.weights_sha256 != again.weights_sha256


def test_splitting_a_step_changes_the_sum_only_by_rounding(tmp_path: Path) -> None:
    reports = [
        train_pairrm(quick(steps=5, batch_tokens=tokens), polite_pairs(240), tmp_path / str(tokens))
        for tokens in (128, 16384)
    ]
    assert reports[0].final_loss == pytest.approx(reports[1].final_loss, abs=1e-4)


def test_fine_tuning_goes_on_from_a_model(trained: tuple[Path, ScorerReport], tmp_path: Path) -> None:
    report = train_pairrm(quick(start=str(trained[0]), steps=3), polite_pairs(240, seed=1), tmp_path / "tuned")
    assert report.accuracy is not None and report.accuracy > 0.95
    assert report.parameters == trained[1].parameters


def test_soft_labels_are_learned_as_probabilities(tmp_path: Path) -> None:
    soft = [PreferencePair(p.prompt, p.response_a, p.response_b, 0.3 + 0.4 * p.preference_b) for p in polite_pairs(240)]
    report = train_pairrm(quick(steps=80), soft, tmp_path / "soft")
    assert report.accuracy is not None and report.accuracy > 0.95
    filled = [row for row in report.calibration if row.pairs]
    assert all(row.predicted is not None and row.predicted < 0.85 for row in filled)


def test_another_models_tokenizer_can_be_used(tmp_path: Path) -> None:
    train_tokenizer(TEXTS, 300).save_pretrained(str(tmp_path / "tokenizer"))
    config = quick(tokenizer=str(tmp_path / "tokenizer"), steps=2)
    train_pairrm(config, polite_pairs(240), tmp_path / "scorer")
    asked = Comparison(Prompt.of("p", "?"), ("a", "b"))
    assert (
        build_scorer(PairRMScorer(model=str(tmp_path / "scorer")), device="cpu").score([asked])[0].truncated_candidates
        == 0
    )
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        train_pairrm(quick(tokenizer=str(tmp_path)), polite_pairs(240), tmp_path / "none")


def test_a_folder_with_a_model_is_not_overwritten(trained: tuple[Path, ScorerReport]) -> None:
    with pytest.raises(InputError, match="holds a model already"):
        train_pairrm(quick(), polite_pairs(240), trained[0])


def test_no_prompt_is_both_trained_on_and_tested_on() -> None:
    pairs = [pair for pair in polite_pairs(50) for _ in range(3)]
    training, held_out = split_by_prompt(pairs, 0.2, seed=0)
    assert len(training) + len(held_out) == 150 and 30 <= len(held_out) <= 33
    assert not {p.prompt.messages for p in training} & {p.prompt.messages for p in held_out}
    with pytest.raises(InputError, match="nothing to train on"):
        split_by_prompt(pairs[:3], 0.2, seed=0)


def test_both_forms_of_pairs_and_chat_prompts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    rows = [
        {"prompt": "p", "response_a": "a", "response_b": "b", "preference_b": 0.25, "generator_a": "x"},
        {"prompt": chat, "chosen": "c", "rejected": [{"role": "assistant", "content": "r"}]},
    ]
    path.write_text("\n\n".join(json.dumps(row) for row in rows))
    first, second = read_preferences(path)
    assert (first.response_a, first.response_b, first.preference_b) == ("a", "b", 0.25)
    assert second.prompt.messages == (Message.of("system", "s"), Message.of("user", "u"))
    assert (second.response_a, second.response_b, second.preference_b) == ("c", "r", 0.0)


GOOD = '{"prompt": "p", "chosen": "a", "rejected": "b"}'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "must be a JSON object, not list"),
        ('{"chosen": "a", "rejected": "b"}', "'prompt' is missing"),
        ('{"prompt": " ", "chosen": "a", "rejected": "b"}', "'prompt' is empty"),
        ('{"prompt": 3, "chosen": "a", "rejected": "b"}', "must be text or a list of chat messages"),
        (
            '{"prompt": [{"role": "assistant", "content": "x"}], "chosen": "a", "rejected": "b"}',
            "ends with a user turn",
        ),
        ('{"prompt": [{"content": "x"}], "chosen": "a", "rejected": "b"}', "needs 'role' and 'content'"),
        ('{"prompt": "p", "chosen": "a"}', "or 'chosen' and 'rejected'"),
        ('{"prompt": "p", "chosen": "a", "rejected": null}', "'rejected' must be text"),
        ('{"prompt": "p", "response_a": "a", "response_b": "b", "preference_b": 2}', "'preference_b' is 2"),
        ('{"prompt": "p", "response_a": "a", "response_b": "b", "preference_b": true}', "'preference_b' is True"),
        ('{"prompt": "p", "response_a": "a", "response_b": "b", "preference_b": NaN}', "'preference_b' is nan"),
    ],
)
def test_a_bad_line_is_reported_by_file_and_number(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(InputError, match=f"pairs.jsonl, line 3: .*{reason}"):
        read_preferences(path)


def test_files_without_pairs_are_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_preferences(tmp_path / "missing.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no preference pairs"):
        read_preferences(tmp_path / "empty.jsonl")


def test_the_command_trains_and_reports(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {
            "prompt": p.prompt.messages[0].text,
            "response_a": p.response_a,
            "response_b": p.response_b,
            "preference_b": p.preference_b,
        }
        for p in polite_pairs(80)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    out = tmp_path / "out"
    options = ["--steps", "3", "--batch", "8", "--device", "cpu", "--threads", "1"]
    result = CliRunner().invoke(app, ["train", str(path), "--out", str(out), *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for words in ("80 pairs", "Accuracy", "Position bias", "Calibration"):
        assert words in result.output
    assert {"config.json", "model.safetensors", "tokenizer.json", "report.json", "reliability.png"} <= {
        file.name for file in out.iterdir()
    }


def test_the_command_names_a_bad_option(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"size: 'huge'"):
        CliRunner().invoke(app, ["train", "x.jsonl", "--out", "y", "--size", "huge"], catch_exceptions=False)


def test_progress_is_told_by_stage(tmp_path: Path) -> None:
    seen: list[TrainProgress] = []
    train_pairrm(quick(steps=2), polite_pairs(80), tmp_path / "scorer", seen.append)
    assert [p.stage for p in seen if p.done == p.total] == ["tokenise", "train", "test"]


@pytest.mark.slow
@pytest.mark.skipif(not REAL_PAIRS.exists(), reason=f"{REAL_PAIRS.name} is not beside this checkout")
def test_real_preferences_can_be_trained_on(tmp_path: Path) -> None:
    pairs = read_preferences(REAL_PAIRS)
    config = quick(steps=5, max_source_tokens=32, max_total_tokens=128, vocabulary=1024)
    report = train_pairrm(config, pairs[:300], tmp_path / "real")
    assert report.training_pairs + report.held_out_pairs == 300
    assert report.truncated_share > 0
