"""Prompts and answers as a scorer reads them."""

from __future__ import annotations

import pytest

from learner.records import Message, Prompt
from workers.scorers.text import render_pairrm, replace_literals, strip_thinking


def prompt(*turns: tuple[str, str]) -> Prompt:
    return Prompt(id="p", messages=tuple(Message.of(role, text) for role, text in turns))  # type: ignore[arg-type]


def test_a_single_turn_is_given_raw() -> None:
    assert render_pairrm(prompt(("user", "Hi?")), ["a", "b"]) == ("Hi?", ["a", "b"])


def test_a_system_prompt_stands_on_a_line_before() -> None:
    assert render_pairrm(prompt(("system", "Be kind."), ("user", "Hi?")), ["a"]) == ("Be kind.\nHi?", ["a"])


def test_several_turns_are_rendered_as_llm_blender_renders_conversations() -> None:
    from workers.scorers import pairrm_shim  # noqa: F401  (puts back the name that llm-blender's import needs)

    blender_utils = pytest.importorskip("llm_blender.blender.blender_utils")
    turns = [("user", "one"), ("assistant", "two"), ("user", "three")]
    theirs = [
        [{"role": role.upper(), "content": text} for role, text in [*turns, ("assistant", answer)]]
        for answer in ("x", "y")
    ]
    inputs, first, second = blender_utils.get_pair_from_conv([theirs[0]], [theirs[1]])
    source, candidates = render_pairrm(prompt(*turns), ["x", "y"])
    assert source == inputs[0]
    assert candidates == [first[0], second[0]]


def test_neighbouring_turns_of_one_role_are_joined() -> None:
    joined = render_pairrm(prompt(("user", "a\nb"), ("assistant", "c"), ("user", "d")), ["x"])
    assert render_pairrm(prompt(("user", "a"), ("user", "b"), ("assistant", "c"), ("user", "d")), ["x"]) == joined


def test_a_chat_that_begins_with_the_assistant_keeps_its_text() -> None:
    source, candidates = render_pairrm(prompt(("assistant", "Welcome!"), ("user", "Hi")), ["x"])
    assert "USER: Hi" in source and candidates == ["<Response 1>: Welcome!\n<Response 2>: x"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plain", "plain"),
        ("<think>a\nb</think>\n\nyes", "yes"),
        ("<think>never ends", ""),
        ("thought begun in the prompt</think> yes", "yes"),
        ("a<think>b</think>c<think>d</think>e", "ace"),
    ],
)
def test_thinking_is_stripped(text: str, wanted: str) -> None:
    assert strip_thinking(text) == wanted


def test_literals_become_spaces() -> None:
    assert replace_literals("a[SEP]b<|source|>c", ["[SEP]", "<|source|>"]) == "a b c"
