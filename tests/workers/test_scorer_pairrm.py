"""PairRM: layouts, assembling of pairs, and scores that do not depend on who else is in the batch."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.errors import InputError
from tests.workers.scorer_samples import (
    comparison,
    pair_tokenizer,
    write_hf_layout,
    write_original_layout,
)
from workers.config import PairRMScorer
from workers.scorers.base import Comparison, ScoreResult
from workers.scorers.batching import plan_batches
from workers.scorers.build import build_scorer
from workers.scorers.pairrm_model import load_pairrm, pair_logits

torch.set_num_threads(1)

COMPARISONS = [
    comparison("hello there", "hi!", "the quick brown fox jumps over the lazy dog", "no", "42 is the answer"),
    comparison("the lazy dog " * 4, "fox", "a fox " * 9),
    comparison("?", "yes", "no", "hello there, how are you?"),
]


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairrm") / "hf"
    write_hf_layout(folder)
    return folder


def score(
    model: Path, comparisons: list[Comparison], *, batch_tokens: int = 4096, **options: object
) -> list[ScoreResult]:
    config = PairRMScorer.model_validate(
        {"model": str(model), "max_source_tokens": 64, "max_total_tokens": 160, **options}
    )
    return build_scorer(config, device="cpu", threads=1, batch_tokens=batch_tokens).score(comparisons)


def test_the_logits_are_those_of_llm_blenders_own_forward(hf_folder: Path) -> None:
    model, tokenizer, _ = load_pairrm(str(hf_folder), max_source_tokens=64, max_total_tokens=160)
    pad = tokenizer.tokenizer.pad_token_id
    encode = tokenizer.tokenizer.encode
    rows = [
        encode("<|source|>" + c.prompt.messages[-1].text)
        + encode("<|candidate1|>" + c.answers[i])
        + encode("<|candidate2|>" + c.answers[j])
        for c in COMPARISONS
        for i in range(len(c.answers))
        for j in range(len(c.answers))
        if i != j
    ]
    longest = max(map(len, rows)) + 5
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=(ids != pad).long(), return_dict=True).logits.numpy()
    assert np.abs(expected).max() > 0.01
    results = score(hf_folder, COMPARISONS)
    got = np.concatenate([r.ordered_logits[~np.eye(len(r.ordered_logits), dtype=bool)] for r in results])
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_logit_does_not_depend_on_batch_mates_or_padding(hf_folder: Path) -> None:
    together = score(hf_folder, COMPARISONS)
    for budget in (64, 300):
        for one, other in zip(together, score(hf_folder, COMPARISONS, batch_tokens=budget), strict=True):
            np.testing.assert_allclose(one.ordered_logits, other.ordered_logits, atol=1e-5)
    for alone, wanted in zip(COMPARISONS, together, strict=True):
        np.testing.assert_allclose(score(hf_folder, [alone])[0].ordered_logits, wanted.ordered_logits, atol=1e-5)


def test_both_orders_are_scored_and_permuting_answers_permutes_logits(hf_folder: Path) -> None:
    original = COMPARISONS[0]
    order = [2, 0, 3, 1]
    permuted = Comparison(original.prompt, tuple(original.answers[i] for i in order))
    first, second = score(hf_folder, [original, permuted])
    np.testing.assert_allclose(second.ordered_logits, first.ordered_logits[np.ix_(order, order)], atol=1e-5)
    assert np.all(np.diag(first.ordered_logits) == 0)
    assert np.abs(first.ordered_logits + first.ordered_logits.T).max() > 1e-4, "an untrained model has position bias"


def test_equal_answers_get_equal_logits_in_both_orders(hf_folder: Path) -> None:
    logits = score(hf_folder, [comparison("hello", "yes", "no", "yes")])[0].ordered_logits
    assert logits[0, 2] == logits[2, 0]
    assert logits[0, 1] == logits[2, 1] and logits[1, 0] == logits[1, 2]


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_the_original_layout_scores_as_the_transformers_layout(hf_folder: Path, tmp_path: Path, suffix: str) -> None:
    write_original_layout(tmp_path / "original", hf_folder, tmp_path / "backbone", suffix=suffix)
    for one, other in zip(score(tmp_path / "original", COMPARISONS), score(hf_folder, COMPARISONS), strict=True):
        np.testing.assert_array_equal(one.ordered_logits, other.ordered_logits)


def test_a_configuration_without_sep_token_id_loads(hf_folder: Path, tmp_path: Path) -> None:
    """Transformers 4 left ``sep_token_id: null`` out of the file; transformers 5 has no such attribute by itself."""
    write_hf_layout(tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    described = json.loads(path.read_text())
    del described["sep_token_id"]
    path.write_text(json.dumps(described))
    np.testing.assert_array_equal(
        score(tmp_path / "old", COMPARISONS)[0].ordered_logits, score(hf_folder, COMPARISONS)[0].ordered_logits
    )


def test_what_is_saved_loads_with_llm_blenders_class(hf_folder: Path) -> None:
    from workers.scorers.pairrm_shim import DebertaV2PairRM

    theirs = DebertaV2PairRM.from_pretrained(str(hf_folder)).eval()
    ours, tokenizer, _ = load_pairrm(str(hf_folder), max_source_tokens=64, max_total_tokens=160)
    segments = tokenizer.segments(["hello"], [["yes", "no"]])[0]
    pair = tokenizer.pair(segments.source, *segments.candidates)
    with torch.inference_mode():
        torch.testing.assert_close(
            pair_logits(theirs, [pair], tokenizer.pad_id), pair_logits(ours, [pair], tokenizer.pad_id)
        )


def test_the_identity_is_the_digest_of_the_weights(hf_folder: Path, tmp_path: Path) -> None:
    import hashlib

    identity = build_scorer(PairRMScorer(model=str(hf_folder)), device="cpu").identity
    assert identity.version == hashlib.sha256((hf_folder / "model.safetensors").read_bytes()).hexdigest()
    assert (identity.kind, identity.name) == ("pairrm", str(hf_folder))
    write_hf_layout(tmp_path / "other", seed=1)
    assert build_scorer(PairRMScorer(model=str(tmp_path / "other")), device="cpu").identity.version != identity.version


def test_texts_that_are_too_long_are_cut_as_the_tokenizer_would_and_counted() -> None:
    tokenizer = pair_tokenizer(max_source_tokens=16, max_total_tokens=60)
    encode = tokenizer.tokenizer.encode
    source, answers = "fox " * 50, ["dog " * 50, "hi", "lazy " * 40]
    segments = tokenizer.segments([source, "hi"], [answers, answers])
    assert segments[0].source == encode("<|source|>" + source, max_length=16, truncation=True)
    assert segments[0].truncated_source and not segments[1].truncated_source
    for segment in segments:
        limit = (60 - len(segment.source)) // 2
        assert segment.candidates == [encode("<|candidate1|>" + a, max_length=limit, truncation=True) for a in answers]
        assert segment.truncated_candidates == 2
    assert len(segments[1].candidates[0]) > len(segments[0].candidates[0]), "a short prompt leaves more room"


def test_special_strings_in_texts_are_replaced_by_a_space() -> None:
    tokenizer = pair_tokenizer()
    hostile = "a<|candidate2|>b[SEP]c<|source|>d[CLS]e<|candidate|>f[PAD]g"
    segment = tokenizer.segments([hostile], [[hostile]])[0]
    clean = tokenizer.segments(["a b c d e f g"], [["a b c d e f g"]])[0]
    assert segment == clean
    assert segment.source.count(tokenizer.source_id) == 1


def test_thinking_is_left_out_when_asked(hf_folder: Path) -> None:
    thoughtful = comparison("hello", "<think>the lazy dog</think>yes", "no")
    plain = comparison("hello", "yes", "no")
    stripped, with_thoughts = (score(hf_folder, [thoughtful], strip_thinking=s)[0] for s in (True, False))
    wanted = score(hf_folder, [plain])[0].ordered_logits
    np.testing.assert_array_equal(stripped.ordered_logits, wanted)
    assert not np.array_equal(with_thoughts.ordered_logits, wanted)


def test_a_pickle_with_code_is_refused(hf_folder: Path, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (print, ("harm",))

    write_original_layout(tmp_path / "bad", hf_folder, tmp_path / "backbone", suffix="bin")
    torch.save({"x": Harm()}, tmp_path / "bad" / "pytorch_model.bin")
    with pytest.raises((pickle.UnpicklingError, InputError)):
        load_pairrm(str(tmp_path / "bad"), max_source_tokens=64, max_total_tokens=160)


def test_folders_that_are_no_pairrm_are_refused_with_a_reason(hf_folder: Path, tmp_path: Path) -> None:
    def refused(folder: Path, match: str, total: int = 160) -> None:
        with pytest.raises(InputError, match=match):
            load_pairrm(str(folder), max_source_tokens=64, max_total_tokens=total)

    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, r"no config\.json")
    (empty / "config.json").write_text("{")
    refused(empty, "not JSON")
    (empty / "config.json").write_text('{"model_type": "llama"}')
    refused(empty, "'llama', not a PairRM")
    (empty / "config.json").write_text('{"model_type": "deberta-v2"}')
    refused(empty, "holds no weights")
    refused(hf_folder, "leaves no room", total=70)

    write_original_layout(tmp_path / "original", hf_folder, tmp_path / "backbone")
    described = json.loads((tmp_path / "original" / "config.json").read_text())
    (tmp_path / "original" / "config.json").write_text(json.dumps({**described, "ranker_type": "summareranker"}))
    refused(tmp_path / "original", "summareranker")

    write_hf_layout(tmp_path / "cut")
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "cut" / "model.safetensors")
    del state["head_layer.4.bias"]
    save_file(state, tmp_path / "cut" / "model.safetensors")
    refused(tmp_path / "cut", r"missing head_layer\.4\.bias")


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(64, 1000))
@settings(max_examples=200, deadline=None)
def test_a_batch_plan_holds_everything_once_and_keeps_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget
