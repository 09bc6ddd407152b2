"""Reading prompts: every format, and every bad entry named by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.errors import InputError
from services.jobs.prompts import read_prompts
from services.jobs.spec import PromptsConfig

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": [{"type": "text", "text": "How "}, {"type": "text", "text": "are you?"}]},
]


def config(path: Path, **changes: Any) -> PromptsConfig:
    return PromptsConfig(source=str(path), **changes)


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_json_lines_hold_text_or_chat_messages(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"id": "x", "prompt": "Hello", "domain": "greeting"}, "", {"prompt": CHAT})
    first, second = read_prompts(config(path))
    assert (first.id, first.domain, first.messages[0].role, first.messages[0].text) == (
        "x",
        "greeting",
        "user",
        "Hello",
    )
    assert [message.role for message in second.messages] == ["system", "user", "assistant", "user"]
    assert second.messages[-1].text == "How are you?"
    assert second.id == "1", "a missing id is the entry's number, counted from 0"


def test_csv_cells_may_hold_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('\ufeffprompt,id,domain\n"one, ""two""\nthree",7,\nfour,8,maths\n', encoding="utf-8")
    first, second = read_prompts(config(path))
    assert (first.id, first.messages[0].text, first.domain) == ("7", 'one, "two"\nthree', None)
    assert (second.id, second.domain) == ("8", "maths")


def test_parquet_holds_text_or_chat_messages(tmp_path: Path) -> None:
    plain, chat = tmp_path / "plain.parquet", tmp_path / "chat.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"question": ["a", "b"], "key": [1, 2]}), plain)
    messages = [[{"role": "user", "content": "a"}]]
    pyarrow.parquet.write_table(pyarrow.table({"prompt": messages}), chat)
    assert [prompt.id for prompt in read_prompts(config(plain, column="question", id_column="key"))] == ["1", "2"]
    assert read_prompts(config(chat))[0].messages[0].text == "a"


def test_a_system_prompt_goes_before_prompts_that_have_none(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"prompt": "Hello"}, {"prompt": CHAT})
    first, second = read_prompts(config(path, system="Be kind."))
    assert [message.text for message in first.messages] == ["Be kind.", "Hello"]
    assert second.messages[0].text == "Be brief."


def test_the_limit_stops_reading(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"prompt": "a"}, {"prompt": "b"}, "not JSON")
    assert len(read_prompts(config(path, limit=2))) == 2


def test_relative_paths_are_taken_from_the_job_files_folder(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", {"prompt": "a"})
    assert len(read_prompts(PromptsConfig(source="a.jsonl"), tmp_path)) == 1


BAD_LINES: list[tuple[object, str]] = [
    ("{", "line 2: not JSON (Expecting property name enclosed in double quotes, column 2); each line must hold one JSON object"),
    ('{"prompt": "a", "prompt": "b"}', "line 2: the key `prompt` stands twice in one mapping; keep one"),
    ([1], "line 2: each line must hold one JSON object, not [1]"),
    ({"text": "x"}, "line 2: there is no field 'prompt'; name the prompt's field with `column` (here: text)"),
    ({"prompt": 3}, "line 2: the prompt must be text or a list of chat messages, not 3"),
    ({"prompt": []}, "line 2: the prompt must be text or a list of chat messages, not []"),
    ({"prompt": "  "}, "line 2: the prompt or one of its messages is empty"),
    ({"prompt": "\ud800"}, "line 2: the text holds half of a surrogate pair, which is no character"),
    ({"prompt": ["x"]}, "line 2: message 1 must be a mapping with `role` and `content`, not 'x'"),
    ({"prompt": [{"role": "tool", "content": "x"}]}, "line 2: message 1 has the role 'tool'; roles are system, user, assistant"),
    ({"prompt": CHAT[:3]}, "line 2: the last message must be the user's, not the assistant's"),
    ({"prompt": [CHAT[1], CHAT[0], CHAT[1]]}, "line 2: message 2 is a system prompt; it can only be the first message"),
    ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "line 2: a message's part is of type 'image'; only text is taken for now"),
    ({"prompt": "x", "id": 1.5}, "line 2: the id must be text or a whole number, not 1.5"),
    ({"prompt": "x", "id": "p"}, "line 2: the id 'p' stands at FILE, line 1 already; ids must be unique"),
    ({"prompt": "x", "domain": 1}, "line 2: the domain must be text, not 1"),
    (
        {"prompt": "x", "domain": "d" * 256},
        f"line 2: the domain '{'d' * 56}... has 256 characters; a domain's name has at most 255",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "sentence"), BAD_LINES, ids=lambda value: value[8:50] if isinstance(value, str) else None
)
def test_a_bad_line_is_named_by_file_and_line(row: object, sentence: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"id": "p", "prompt": "good"}, row)
    with pytest.raises(InputError) as caught:
        read_prompts(config(path))
    assert str(caught.value).replace(str(path), "FILE") == f"FILE, {sentence}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("prompt,id\na\n", "FILE, line 2: 1 cells where the header names 2 columns"),
        ("prompt,prompt\na,b\n", "FILE, line 1: the header names a column twice"),
        ('prompt\na\n"b\n', "FILE, line 3: not CSV (unexpected end of data)"),
        ("prompt\n", "prompts.source: FILE holds no prompts"),
        ("", "prompts.source: FILE holds no prompts"),
    ],
)
def test_a_bad_csv_file_is_told_by_line(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_prompts(config(path))
    assert str(caught.value).replace(str(path), "FILE") == sentence


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_bytes_that_are_no_text_are_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"prompt\n\xff\xfe\n")
    with pytest.raises(InputError, match=str(path)):
        read_prompts(config(path))


def test_a_hub_dataset_that_cannot_be_read_says_why() -> None:
    with pytest.raises(InputError, match=r"prompts.source: the dataset nobody/nothing, split train, could not be read"):
        read_prompts(PromptsConfig(source="nobody/nothing"))


@given(st.lists(st.text(st.characters(codec="utf-8")).filter(lambda text: text.strip() != ""), min_size=1, max_size=8))
def test_any_text_comes_back_as_it_was_written(texts: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = write_lines(Path(folder) / "a.jsonl", *({"prompt": text} for text in texts))
        assert [prompt.messages[0].text for prompt in read_prompts(config(path))] == texts
