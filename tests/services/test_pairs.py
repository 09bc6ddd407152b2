"""Preference pairs of a file: every common format, every bad row named by file and line, and answers rendered once (rules 1 and 2)."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from small_models import CHATML_TEMPLATE, LLAMA_TEMPLATE, write_model

from learner.errors import InputError
from learner.preference import CERTAIN_LOGIT
from services.jobs.load import parse_job
from services.jobs.model_files import read_model
from services.jobs.pairs import GivenPair, PreparedPairs, prepare_pairs, read_pairs
from services.jobs.rendering import PromptRenderer
from services.jobs.spec import PromptsConfig

QUESTION = {"role": "user", "content": "Hello?"}
TURNS = [{"role": "system", "content": "Be brief."}, QUESTION, {"role": "assistant", "content": "Yes?"}, QUESTION]
EOS, END_OF_TURN, CHATML_END = 2, 5, 7
"""Ids of </s>, <|eot_id|> and <|im_end|> in the small tokenizer."""


def said(text: str, *before: dict[str, str]) -> list[dict[str, str]]:
    return [*before, {"role": "assistant", "content": text}]


def write_rows(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, **changes: Any) -> list[GivenPair]:
    return read_pairs(PromptsConfig(source=str(path), **changes))


def prepare(folder: Path, *rows: object, objective: str = "sppo", **changes: Any) -> PreparedPairs:
    """The pairs of a small model of 128 tokens."""
    source = str(write_rows(folder / "pairs.jsonl", *rows))
    spec = {
        "policy": {"model": str(folder)},
        "prompts": {"source": source, **changes},
        "objective": {"kind": objective},
        "schedule": {"mode": "offline"},
    }
    return prepare_pairs(parse_job(spec), read_model(folder))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hello?", "chosen": "good", "rejected": "bad"},
        {"prompt": "Hello?", "chosen": said("good"), "rejected": said("bad")},
        {"prompt": "Hello?", "chosen": said("good", QUESTION), "rejected": said("bad", QUESTION)},
        {"prompt": [QUESTION], "chosen": said("good", QUESTION), "rejected": "bad"},
        {"chosen": said("good", QUESTION), "rejected": said("bad", QUESTION)},
        {"prompt": None, "chosen": said("good", QUESTION), "rejected": said("bad")},
    ],
)
def test_answers_are_text_or_chats_that_may_repeat_the_prompt(row: dict[str, Any], tmp_path: Path) -> None:
    (pair,) = read(write_rows(tmp_path / "a.jsonl", row))
    assert [(turn.role, turn.text) for turn in pair.prompt.messages] == [("user", "Hello?")]
    assert (pair.chosen, pair.rejected, pair.logit) == ("good", "bad", CERTAIN_LOGIT)


def test_earlier_turns_belong_to_the_prompt(tmp_path: Path) -> None:
    row = {"chosen": said("good", *TURNS), "rejected": said("bad", *TURNS)}
    (pair,) = read(write_rows(tmp_path / "a.jsonl", row), system="Another one.")
    assert [turn.role for turn in pair.prompt.messages] == ["system", "user", "assistant", "user"]
    assert pair.prompt.messages[0].text == "Be brief."


def test_scores_give_the_logit_where_both_are_there(tmp_path: Path) -> None:
    base = {"prompt": "Hello?", "chosen": "good", "rejected": "bad"}
    path = write_rows(
        tmp_path / "a.jsonl",
        {**base, "chosen_score": 7.5, "rejected_score": 5},
        {**base, "chosen_score": 7.5},
        {**base, "chosen_score": 4, "rejected_score": 4},
    )
    assert [pair.logit for pair in read(path)] == [2.5, CERTAIN_LOGIT, 0]
    assert read(path, chosen_score_column=None)[0].logit == CERTAIN_LOGIT


def test_the_policys_own_answer_may_lose_where_the_objective_keeps_the_files_order(tmp_path: Path) -> None:
    write_model(tmp_path)
    row = {"prompt": "Hello?", "chosen": "good", "rejected": "bad", "chosen_score": 1, "rejected_score": 3}
    prepared = prepare(tmp_path, row, objective="nash-md")
    assert (prepared.answers, prepared.logits) == ((("good", "bad"),), (-2.0,))
    with pytest.raises(InputError, match="contradict their order"):
        prepare(tmp_path, row, objective="dpo")


def test_columns_have_the_names_that_the_job_gives_them_in_csv_and_parquet_too(tmp_path: Path) -> None:
    names = {
        "column": "q", "chosen_column": "a", "rejected_column": "b", "chosen_score_column": "sa", "rejected_score_column": "sb",
    }  # fmt: skip
    (tmp_path / "a.csv").write_text("q,a,b,sa,sb\nHello?,good,bad,3,1.5\nHello?,good,bad,,\n")
    first, second = read(tmp_path / "a.csv", **names)
    assert (first.chosen, first.rejected, first.logit, second.logit) == ("good", "bad", 1.5, CERTAIN_LOGIT)
    table = pyarrow.table({"q": ["Hello?"], "a": [said("good")], "b": [said("bad")], "sa": [1.0], "sb": [None]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (pair,) = read(tmp_path / "a.parquet", **names)
    assert (pair.chosen, pair.rejected, pair.logit) == ("good", "bad", CERTAIN_LOGIT)


BASE = {"prompt": "Hello?", "chosen": "good", "rejected": "bad"}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (
            {"prompt": "Hello?", "rejected": "bad"},
            "there is no field 'chosen', which offline jobs need; name the answer's field with prompts.chosen_column "
            "(here: prompt, rejected)",
        ),
        (
            {"prompt": "Hello?", "chosen": "good"},
            "there is no field 'rejected', which offline jobs need; name the answer's field with prompts.rejected_column "
            "(here: prompt, chosen)",
        ),
        ({**BASE, "chosen": ""}, "'chosen' or one of its messages is empty"),
        ({**BASE, "rejected": 7}, "'rejected' must be text or a list of chat messages, not 7"),
        ({**BASE, "chosen": [QUESTION]}, "'chosen' must end with the assistant's turn, not the user's"),
        (
            {**BASE, "chosen": said("good", {"role": "user", "content": "Goodbye?"})},
            "what stands before the answer in 'chosen' is not the prompt in 'prompt'; mend the row, or name a field that no row has as "
            "prompts.column",
        ),
        (
            {"chosen": said("good", QUESTION), "rejected": said("bad", *TURNS)},
            "what stands before the answer in 'rejected' is not what stands before the other answer; mend the row",
        ),
        (
            {"chosen": "good", "rejected": "bad"},
            "there is no prompt: no field 'prompt' (prompts.column), and nothing stands before the answer in 'chosen'",
        ),
        (
            {**BASE, "chosen_score": 1, "rejected_score": 2},
            "the scores 1 of the better answer and 2 of the worse one contradict their order; mend the row, or set "
            "prompts.chosen_score_column: null to leave scores alone",
        ),
        ({**BASE, "chosen_score": "high", "rejected_score": 2}, "'chosen_score' must be a finite number, not 'high'"),
        ({**BASE, "chosen_score": math.inf, "rejected_score": 2}, "'chosen_score' must be a finite number, not inf"),
        ({**BASE, "prompt": "  "}, "the prompt or one of its messages is empty"),
    ],
)
def test_a_bad_row_is_named_by_its_file_and_line(row: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", BASE, row)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value) == f"{path}, line 2: {complaint}"


@pytest.mark.parametrize(
    ("template", "eos", "end"),
    [(LLAMA_TEMPLATE, [2, 5], END_OF_TURN), (LLAMA_TEMPLATE, 2, EOS), (CHATML_TEMPLATE, 7, CHATML_END), (None, 2, EOS)],
    ids=["the template's own end", "an end that the model does not stop at", "chatml", "no template"],
)
def test_answers_are_rendered_behind_their_prompt_and_end_as_the_policys_would(
    template: str | None, eos: int | list[int], end: int, tmp_path: Path
) -> None:
    folder = write_model(tmp_path, template, eos_token_id=eos)
    pairs = prepare(folder, {"prompt": "Hello?", "chosen": "I am well.", "rejected": " no"})
    tokenizer = PromptRenderer(folder).tokenizer
    better, worse = pairs.answer_token_ids[0]
    assert (better[-1], worse[-1]) == (end, end)
    assert [tokenizer.decode(list(ids[:-1])) for ids in (better, worse)] == ["I am well.", " no"]
    assert pairs.longest == len(pairs.token_ids[0]) + len(better)


def test_the_space_that_a_template_writes_before_answers_belongs_to_the_answer(tmp_path: Path) -> None:
    template = "{% for m in messages %}{% if m.role == 'user' %}[I] {{ m.content }} [/I]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
    folder = write_model(tmp_path, template)
    pairs = prepare(folder, {"prompt": "Hello?", "chosen": "yes", "rejected": "no"})
    ids = [*pairs.token_ids[0], *pairs.answer_token_ids[0][0]]
    assert PromptRenderer(folder).tokenizer.decode(ids, skip_special_tokens=False) == "[I] Hello? [/I] yes</s>"


def test_eos_is_counted_once_and_refused_inside_an_answer(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    pairs = prepare(folder, {"prompt": "Hello?", "chosen": "yes</s>", "rejected": "no"})
    assert list(pairs.answer_token_ids[0][0]).count(EOS) == 1
    with pytest.raises(
        InputError, match=r"line 1: an answer holds the token that ends answers; take it out of the text"
    ):
        prepare(folder, {"prompt": "Hello?", "chosen": "yes</s> and", "rejected": "no"})


LONG = {"id": "long", "prompt": " ".join(f"word{n}" for n in range(20)), "chosen": "x " * 30, "rejected": "no"}
SHORT = {"id": "short", "prompt": "Hello?", "chosen": "yes", "rejected": "no"}


def test_pairs_that_are_too_long_are_refused_skipped_or_cut_at_the_prompts_start_and_counted(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    with pytest.raises(
        InputError, match=r"prompts: 1 of 2 prompts are longer with their longer answer than .* 128 tokens"
    ):
        prepare(folder, SHORT, LONG)
    skipped = prepare(folder, SHORT, LONG, too_long="skip")
    assert ([prompt.id for prompt in skipped.prompts], skipped.skipped, skipped.truncated) == (["short"], 1, 0)
    cut = prepare(folder, SHORT, LONG, too_long="truncate")
    assert (len(cut), cut.skipped, cut.truncated) == (2, 0, 1) and cut.longest <= 128
    assert cut.prompts[1].messages[-1].text.endswith("word19")
    with pytest.raises(InputError, match="all 1 prompts are longer"):
        prepare(folder, LONG, too_long="skip")
    with pytest.raises(InputError, match=r"cannot be cut to .* or shorten its answers"):
        prepare(folder, {**LONG, "chosen": "x " * 200}, too_long="truncate")


def test_the_scorer_is_the_file_with_its_digest(tmp_path: Path) -> None:
    pairs = prepare(write_model(tmp_path), SHORT)
    digest = hashlib.sha256((tmp_path / "pairs.jsonl").read_bytes()).hexdigest()
    assert (pairs.source.kind, pairs.source.name, pairs.source.version) == ("file", "pairs.jsonl", digest)
