"""Prompts are rendered once, and as transformers would (rule 2)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_models import (
    CHATML_TEMPLATE,
    LLAMA_TEMPLATE,
    NO_SYSTEM_TEMPLATE,
    write_model,
    write_prompts,
    write_tokenizer,
)

from learner.errors import InputError
from learner.records import Message, Prompt
from services.jobs.load import parse_job
from services.jobs.model_files import read_model
from services.jobs.prepare import prepare_evaluation_prompts, prepare_prompts
from services.jobs.rendering import PromptRenderer
from services.jobs.spec import JobSpec

STORIES = Path(__file__).parents[2].parent / "shared" / "models" / "stories260k"

SINGLE = Prompt.of("single", "Hello, how are you today?  ")
MULTI = Prompt(
    id="multi",
    messages=(
        Message.of("user", "Hello <b>&amp;</b>"),
        Message.of("assistant", "I am well.\n\nAnd you?"),
        Message.of("user", "日本語 🙂 </s> <s> None"),
    ),
)
SYSTEM = Prompt(id="system", messages=(Message.of("system", " Be brief. "), *MULTI.messages))


def transformers_ids(folder: Path, prompt: Prompt) -> tuple[int, ...]:
    from transformers import AutoTokenizer

    messages = [{"role": message.role, "content": message.text} for message in prompt.messages]
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    return tuple(tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False))


@pytest.mark.parametrize("template", [LLAMA_TEMPLATE, CHATML_TEMPLATE], ids=["llama-3", "chatml"])
@pytest.mark.parametrize("prompt", [SINGLE, MULTI, SYSTEM], ids=lambda prompt: prompt.id)
def test_rendering_equals_transformers(template: str, prompt: Prompt, tmp_path: Path) -> None:
    write_model(tmp_path, template)
    assert PromptRenderer(tmp_path).token_ids([prompt]) == [transformers_ids(tmp_path, prompt)]


@pytest.mark.skipif(not STORIES.is_dir(), reason="the pretrained model of the shared folder is not here")
@pytest.mark.parametrize("prompt", [SINGLE, MULTI, SYSTEM], ids=lambda prompt: prompt.id)
def test_rendering_of_a_pretrained_model_equals_transformers(prompt: Prompt) -> None:
    ids = PromptRenderer(STORIES).token_ids([prompt])[0]
    assert ids == transformers_ids(STORIES, prompt)
    assert ids[0] == 1 and ids[1] != 1


def test_the_template_may_lie_in_a_file_of_its_own_or_in_a_named_list(tmp_path: Path) -> None:
    expected = PromptRenderer(write_model(tmp_path / "a", CHATML_TEMPLATE)).token_ids([SYSTEM])
    folder = write_model(tmp_path / "b", None)
    (folder / "chat_template.jinja").write_text(CHATML_TEMPLATE)
    assert PromptRenderer(folder).token_ids([SYSTEM]) == expected
    folder = tmp_path / "c"
    write_tokenizer(folder, None, chat_template=[{"name": "default", "template": CHATML_TEMPLATE}])
    assert PromptRenderer(folder).token_ids([SYSTEM]) == expected


def test_bos_stands_once_although_the_tokenizer_would_add_it(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, LLAMA_TEMPLATE, adds_bos=True)
    ids = PromptRenderer(tmp_path).token_ids([SINGLE])[0]
    assert ids[0] == 1 and 1 not in ids[1:]


@pytest.mark.parametrize(
    ("settings", "starts_with_bos"),
    [({"adds_bos": True}, True), ({"adds_bos": False}, False), ({"adds_bos": True, "add_bos_token": False}, False)],
)
def test_without_a_template_a_single_turn_is_plain_text(
    settings: dict[str, Any], starts_with_bos: bool, tmp_path: Path
) -> None:
    write_tokenizer(tmp_path, None, **settings)
    renderer = PromptRenderer(tmp_path)
    ids = renderer.token_ids([Prompt.of("a", "hello")])[0]
    assert (ids[0] == 1) is starts_with_bos
    assert renderer.tokenizer.decode(list(ids)) == "hello"


@pytest.mark.parametrize("prompt", [MULTI, SYSTEM], ids=lambda prompt: prompt.id)
def test_without_a_template_turns_are_refused_with_the_reason(prompt: Prompt, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, None)
    with pytest.raises(InputError, match="has no chat template, so it takes a single user turn and no system prompt"):
        PromptRenderer(tmp_path).token_ids([prompt])


def test_what_a_template_refuses_is_told_with_the_prompts_id(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, NO_SYSTEM_TEMPLATE)
    renderer = PromptRenderer(tmp_path)
    assert renderer.text(SINGLE) == f"<s>{SINGLE.messages[0].text}"
    with pytest.raises(InputError) as caught:
        renderer.token_ids([SYSTEM])
    assert str(caught.value) == "policy.model: the chat template refuses prompt 'system': System role not supported"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}", "the chat template is not valid jinja2"),
        ("{{ messages.__class__.__mro__ }}", "the chat template refuses prompt 'single'"),
        ("{{ messages.append(1) }}", "the chat template refuses prompt 'single'"),
        ("", "prompt 'single' renders to no tokens"),
    ],
)
def test_a_template_that_is_broken_or_reaches_out_is_refused(template: str, reason: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, template)
    with pytest.raises(InputError, match=reason):
        PromptRenderer(tmp_path).token_ids([SINGLE])


def test_a_tokenizer_that_pads_and_cuts_is_kept_from_it(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    expected = PromptRenderer(tmp_path).token_ids([SINGLE, MULTI])
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    data["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    data["padding"] = {
        "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert PromptRenderer(tmp_path).token_ids([SINGLE, MULTI]) == expected


# ---- prompts that are too long -------------------------------------------------------------------------------------------------


def job(folder: Path, too_long: str, max_tokens: int = 90) -> JobSpec:
    return parse_job(
        {
            "policy": {"model": str(folder)},
            "prompts": {"source": str(folder / "prompts.jsonl"), "too_long": too_long, "shuffle": False},
            "sampling": {"max_tokens": max_tokens},
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose context of 128 leaves 37 tokens, one more being kept free, two short prompts and a long one."""
    write_model(tmp_path)
    path = write_prompts(tmp_path / "prompts.jsonl", 2)
    with path.open("a") as file:
        file.write(json.dumps({"id": "long", "prompt": " ".join(f"word{number}" for number in range(30))}) + "\n")
    return tmp_path


def test_long_prompts_are_refused_or_skipped_and_counted(folder: Path) -> None:
    model = read_model(folder)
    with pytest.raises(InputError, match=r"prompts: 1 of 3 prompts are longer than the 37 .* the first is 'long'"):
        prepare_prompts(job(folder, "error"), model)
    prepared = prepare_prompts(job(folder, "skip"), model)
    assert ([prompt.id for prompt in prepared.prompts], prepared.skipped, prepared.truncated) == (["p0", "p1"], 1, 0)


def test_long_prompts_lose_the_start_of_their_text_and_keep_the_template(folder: Path) -> None:
    prepared = prepare_prompts(job(folder, "truncate"), read_model(folder))
    assert (prepared.skipped, prepared.truncated, prepared.longest <= 37) == (0, 1, True)
    text = PromptRenderer(folder).tokenizer.decode(list(prepared.token_ids[2]), skip_special_tokens=False)
    assert text.startswith("<s><|start_header_id|>user<|end_header_id|>")
    assert text.endswith("word29<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")
    kept = prepared.prompts[2].messages[0].text
    assert len(kept) > 0 and " ".join(f"word{number}" for number in range(30)).endswith(kept), (
        "the scorer sees what the policy saw"
    )


def test_a_prompt_whose_other_turns_fill_the_context_cannot_be_cut(folder: Path) -> None:
    row = {"id": "turns", "prompt": [{"role": "system", "content": "word " * 60}, {"role": "user", "content": "hi"}]}
    (folder / "prompts.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="prompt 'turns' cannot be cut to 37 tokens"):
        prepare_prompts(job(folder, "truncate"), read_model(folder))


def test_skipping_every_prompt_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="all 3 prompts are longer than the 2 "):
        prepare_prompts(job(folder, "skip", max_tokens=125), read_model(folder))


def test_held_out_prompts_are_the_same_few_whatever_their_order_in_the_file(folder: Path) -> None:
    lines = write_prompts(folder / "held.jsonl", 20).read_text().splitlines()
    spec = job(folder, "skip").model_dump()
    spec["evaluation"] |= {"prompts": {"source": str(folder / "held.jsonl")}, "count": 5}
    first = prepare_evaluation_prompts(parse_job(spec), read_model(folder))
    (folder / "held.jsonl").write_text("\n".join(reversed(lines)))
    second = prepare_evaluation_prompts(parse_job(spec), read_model(folder))
    assert first is not None and second is not None
    assert len(first) == 5 and first.prompts == second.prompts
