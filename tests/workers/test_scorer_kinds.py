"""Reward models and functions as preference scorers, by Bradley-Terry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from learner.errors import InputError
from learner.records import Prompt
from tests.workers.scorer_samples import TEXTS, comparison, write_hf_layout
from workers.config import FunctionScorer, PairRMScorer, RewardModelScorer
from workers.scorers import function
from workers.scorers.build import build_scorer
from workers.scorers.new_tokenizer import train_tokenizer

torch.set_num_threads(1)

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def write_reward_model(folder: Path, *, outputs: int = 1, template: str | None = TEMPLATE) -> Path:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(str(folder))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=outputs,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    LlamaForSequenceClassification(config).save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_a_reward_models_logits_are_differences_of_its_rewards(tmp_path: Path, template: str | None) -> None:
    folder = write_reward_model(tmp_path / "rm", template=template)
    compared = comparison("hello there", "yes", "the quick brown fox", "no")
    scorer = build_scorer(RewardModelScorer(model=str(folder)), device="cpu")
    logits = scorer.score([compared])[0].ordered_logits

    model = LlamaForSequenceClassification.from_pretrained(str(folder)).eval()
    tokenizer = train_tokenizer(TEXTS, 300)
    rewards = []
    for answer in compared.answers:
        if template:
            ids = tokenizer(f"user: hello there\nassistant: {answer}\n", add_special_tokens=False)["input_ids"]
        else:
            ids = tokenizer("hello there", answer)["input_ids"]
        with torch.inference_mode():
            rewards.append(model(input_ids=torch.tensor([ids])).logits.item())
    np.testing.assert_allclose(logits, np.subtract.outer(rewards, rewards), atol=1e-5)
    assert np.abs(logits).max() > 1e-3
    assert (scorer.identity.kind, len(scorer.identity.version)) == ("reward-model", 64)


def write_cross_encoder(folder: Path) -> Path:
    """A reward model that reads two texts, and has learned which is which and where."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.save_pretrained(str(folder))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
    )
    BertForSequenceClassification(config).save_pretrained(str(folder))
    return folder


def test_a_classifier_of_pairs_is_told_which_text_a_token_belongs_to(tmp_path: Path) -> None:
    folder = write_cross_encoder(tmp_path / "rm")
    scorer = build_scorer(RewardModelScorer(model=str(folder), max_total_tokens=64), device="cpu")
    compared = comparison("hello there", "yes", "the quick brown fox", "no")
    logits = scorer.score([compared])[0].ordered_logits
    model = BertForSequenceClassification.from_pretrained(str(folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    with torch.inference_mode():
        rewards, blind = (
            [
                model(**{name: torch.tensor([tokenizer("hello there", answer)[name]]) for name in names}).logits.item()
                for answer in compared.answers
            ]
            for names in (("input_ids", "token_type_ids"), ("input_ids",))
        )
    np.testing.assert_allclose(logits, np.subtract.outer(rewards, rewards), atol=1e-5)
    assert np.abs(logits - np.subtract.outer(blind, blind)).max() > 1e-3, "it matters"


def test_a_reward_model_with_fewer_positions_than_it_may_be_given_is_refused(tmp_path: Path) -> None:
    folder = write_cross_encoder(tmp_path / "rm")
    with pytest.raises(InputError, match=r"reads at most 64 tokens; set scorer.model.max_total_tokens to that or less"):
        build_scorer(RewardModelScorer(model=str(folder), max_total_tokens=65), device="cpu")


def test_a_reward_does_not_depend_on_batch_mates(tmp_path: Path) -> None:
    folder = write_reward_model(tmp_path / "rm")
    asked = [comparison("hello", "yes", "no"), comparison("the lazy dog", "jumps over " * 6, "fox", "42")]
    together = build_scorer(RewardModelScorer(model=str(folder)), device="cpu").score(asked)
    apart = build_scorer(RewardModelScorer(model=str(folder)), device="cpu", batch_tokens=64)
    for one, compared in zip(together, asked, strict=True):
        np.testing.assert_allclose(one.ordered_logits, apart.score([compared])[0].ordered_logits, atol=1e-5)


def test_a_reward_model_counts_what_it_cuts(tmp_path: Path) -> None:
    folder = write_reward_model(tmp_path / "rm")
    scorer = build_scorer(RewardModelScorer(model=str(folder), max_total_tokens=48), device="cpu")
    assert scorer.score([comparison("hello", "yes", "the lazy dog " * 30)])[0].truncated_candidates == 1


def test_models_that_are_no_reward_model_are_refused(tmp_path: Path) -> None:
    two = write_reward_model(tmp_path / "two", outputs=2)
    with pytest.raises(InputError, match="2 outputs"):
        build_scorer(RewardModelScorer(model=str(two)), device="cpu")
    plain = write_reward_model(tmp_path / "plain")
    config = LlamaConfig.from_pretrained(str(plain))
    LlamaForCausalLM(config).save_pretrained(str(plain))
    with pytest.raises(InputError, match="not a trained sequence classifier"):
        build_scorer(RewardModelScorer(model=str(plain)), device="cpu")


def test_a_model_that_is_nowhere_is_an_input_error(tmp_path: Path) -> None:
    for config in (PairRMScorer(model="nobody/nothing"), RewardModelScorer(model=str(tmp_path / "missing"))):
        with pytest.raises(InputError, match="not a local folder"):
            build_scorer(config, device="cpu")


def test_a_gpu_that_is_missing_is_an_input_error(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    write_hf_layout(tmp_path / "rm")
    with pytest.raises(InputError, match="no usable GPU"):
        build_scorer(PairRMScorer(model=str(tmp_path / "rm")), device="cuda")


def by_length(prompt: Prompt, answers: Sequence[str]) -> list[float]:
    return [float(len(answer)) for answer in answers]


def none_at_all(prompt: Prompt, answers: Sequence[str]) -> list[float]:
    return []


def offer(monkeypatch: pytest.MonkeyPatch, **functions: str) -> None:
    points = [
        EntryPoint(name.replace("_", "-"), f"{__name__}:{value}", function.GROUP) for name, value in functions.items()
    ]

    def entry_points(group: str, name: str | None = None) -> list[EntryPoint]:
        return [point for point in points if point.group == group and name in (None, point.name)]

    monkeypatch.setattr(function, "entry_points", entry_points)


def test_a_registered_function_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, length="by_length")
    scorer = build_scorer(FunctionScorer(name="length"))
    result = scorer.score([comparison("?", "a", "abc")])[0]
    np.testing.assert_array_equal(result.ordered_logits, [[0, -2], [2, 0]])
    assert scorer.identity.name == "length"


def test_an_unknown_function_is_refused_with_the_names_that_are_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, length="by_length", none_at_all="none_at_all")
    with pytest.raises(InputError, match="no scorer function 'os:system'; it offers: length, none-at-all"):
        build_scorer(FunctionScorer(name="os:system"))


def test_a_function_that_does_not_reward_every_answer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, none_at_all="none_at_all")
    with pytest.raises(InputError, match="one finite number for each"):
        build_scorer(FunctionScorer(name="none-at-all")).score([comparison("?", "a", "b")])
