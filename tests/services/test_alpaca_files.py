"""AlpacaEval's files of answers: read, written, and matched with prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.errors import InputError
from learner.records import Message, Prompt
from services.evaluation.alpaca import read_answers, read_evaluation_prompts, write_answers

ROWS = [
    {"instruction": "Say hi.", "output": "Hi!", "generator": "gpt", "dataset": "helpful_base"},
    {"instruction": "Say bye.", "output": "", "generator": "gpt", "dataset": "koala"},
]


def write(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows))
    return path


def test_a_published_file_is_read_as_it_is(tmp_path: Path) -> None:
    given = read_answers(write(tmp_path / "model_outputs.json", ROWS))
    assert given.generator == "gpt"
    assert [prompt.messages[0].text for prompt in given.prompts] == ["Say hi.", "Say bye."]
    assert given.answers([Prompt.of("x", "Say bye."), Prompt.of("y", "Say hi.")]) == ["", "Hi!"]


def test_what_is_written_has_alpaca_evals_fields_and_is_read_again(tmp_path: Path) -> None:
    talk = Prompt(id="t", messages=(Message.of("system", "Be kind."), Message.of("user", "Help me.")))
    prompts = [Prompt.of("a", "Same?", "bills"), Prompt.of("b", "Same?"), talk]
    path = tmp_path / "new" / "model_outputs.json"
    write_answers(path, prompts, ["eins", "zwei", "drei ü"], "my-model")
    rows = json.loads(path.read_text())
    assert rows[0] == {"instruction": "Same?", "output": "eins", "generator": "my-model", "dataset": "bills", "id": "a"}
    assert rows[2]["instruction"] == "Be kind.\n\nHelp me." and rows[2]["output"] == "drei ü"
    assert read_answers(path).answers(prompts) == ["eins", "zwei", "drei ü"]


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5),
        st.tuples(st.sampled_from(["One?", "Two?", "Three?"]), st.text(max_size=9)),
        min_size=1,
    )
)
def test_every_answer_comes_back_to_its_prompt(
    tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, tuple[str, str]]
) -> None:
    prompts = [Prompt.of(identity, text) for identity, (text, _) in drawn.items()]
    answers = [answer.encode("utf-8", "ignore").decode() for _, answer in drawn.values()]
    path = tmp_path_factory.mktemp("answers") / "a.json"
    write_answers(path, prompts, answers, "m")
    assert read_answers(path).answers(prompts[::-1]) == answers[::-1]


def test_an_id_counts_only_together_with_its_instruction(tmp_path: Path) -> None:
    rows = [
        {"id": "0", "instruction": "First?", "output": "one"},
        {"id": "1", "instruction": "Second?", "output": "two"},
    ]
    given = read_answers(write(tmp_path / "a.json", rows))
    assert given.answers([Prompt.of("0", "Second?")]) == ["two"], "another file may count its prompts otherwise"


def test_json_lines_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert read_answers(path).answers([Prompt.of("p", "Say hi.")]) == ["Hi!"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "holds no answers"),
        ({"instruction": "x", "output": "y"}, "must hold a list of objects"),
        ([3], "object 1: must be an object"),
        ([{"instruction": "x"}], "object 1: `output` must be text, not None"),
        ([{"instruction": " ", "output": "y"}], "object 1: `instruction` must be text"),
        ([ROWS[0], ROWS[0]], "object 2: the instruction 'Say hi.' stands twice"),
        ([ROWS[0] | {"id": "a"}, ROWS[1] | {"id": "a"}], "object 2: the id must be text that no other object has"),
        ([ROWS[0] | {"id": 5}], "object 1: the id must be text"),
    ],
)
def test_a_bad_file_is_said_by_object_and_field(tmp_path: Path, rows: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_answers(write(tmp_path / "a.json", rows))


def test_a_file_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_answers(tmp_path / "a.json")
    (tmp_path / "b.json").write_text("[{]")
    with pytest.raises(InputError, match="not JSON"):
        read_answers(tmp_path / "b.json")


def test_prompts_come_from_a_jobs_files_and_from_alpaca_evals(tmp_path: Path) -> None:
    lines = tmp_path / "p.jsonl"
    lines.write_text('{"id": "one", "ask": "Hi?"}\n{"id": "two", "ask": "Bye?"}\n')
    found = read_evaluation_prompts(str(lines), limit=1, column="ask", split="train")
    assert [(prompt.id, prompt.messages[0].text) for prompt in found] == [("one", "Hi?")]
    listed = write(tmp_path / "alpaca_eval.json", [{"instruction": "Say hi."}, {"instruction": "Say bye."}])
    found = read_evaluation_prompts(str(listed), limit=None, column="prompt", split="train")
    assert [(prompt.id, prompt.messages[0].text) for prompt in found] == [("i0", "Say hi."), ("i1", "Say bye.")]
    with pytest.raises(InputError, match=r"--prompts: prompts\.txt is neither"):
        read_evaluation_prompts("prompts.txt", limit=None, column="prompt", split="train")
    with pytest.raises(InputError, match=r"--prompts\.source: there is no file"):
        read_evaluation_prompts(str(tmp_path / "none.jsonl"), limit=None, column="prompt", split="train")
