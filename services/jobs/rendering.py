"""Renders prompts to token ids, once (rule 2), without torch or transformers.

The chat template is rendered by a sandboxed jinja2 set up as the transformers library does it, and encoded with `tokenizers`, adding
no special tokens: what the template writes is what the policy gets, so BOS never stands twice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from learner.errors import InputError
from learner.records import Message, Prompt
from learner.rendered import transformers_tokenizer
from services.jobs.files import reading
from services.jobs.model_files import read_json

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
"""What a chat template can raise on messages that it does not like."""


class PromptRenderer:
    """Turns prompts into the token ids that sampler and learner share.

    Models without a chat template take a single user turn as plain text, with BOS in front where the tokenizer adds it by itself.

    Args:
        folder: a model folder with ``tokenizer.json``.
        key: the job's key that names the folder, for errors.
        allow_transformers: let transformers build the tokenizer where ``tokenizer.json`` is missing (sentencepiece models).

    Raises:
        InputError: the tokenizer or its chat template cannot be read.
    """

    def __init__(self, folder: Path, key: str = "policy.model", *, allow_transformers: bool = False) -> None:
        self._key = key
        self.tokenizer = _tokenizer(folder, key, allow_transformers)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        has_config = (folder / "tokenizer_config.json").is_file()
        self._config = read_json(folder / "tokenizer_config.json", key) if has_config else {}
        self._special = {
            name: text for name in SPECIAL_TOKENS if (text := _token_text(self._config.get(name))) is not None
        }
        self.template_text = _chat_template(folder, self._config, key)
        self._template = None if self.template_text is None else _compile(self.template_text, key)

    @property
    def writes_the_date(self) -> bool:
        """Whether the template writes today's date into prompts, so that they differ from day to day."""
        return "strftime_now" in (self.template_text or "")

    @property
    def highest_token_id(self) -> int:
        """The highest id that encoding can give."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def token_id(self, name: str) -> int | None:
        """Id of a special token by its name, e.g. ``eos_token``."""
        text = self._special.get(name)
        return None if text is None else self.tokenizer.token_to_id(text)

    def text(self, prompt: Prompt) -> str:
        """The prompt as the policy reads it, up to where its answer begins.

        Raises:
            InputError: the template refuses these messages, or there is no template and they are more than one user turn.
        """
        if self._template is None:
            if len(prompt.messages) != 1:
                raise InputError(
                    f"{self._key}: the model has no chat template, so it takes a single user turn and no system prompt; prompt "
                    f"{prompt.id!r} has the turns {', '.join(message.role for message in prompt.messages)}"
                )
            return prompt.messages[0].text
        try:
            return self._written(self._template, prompt.messages, generation_prompt=True)
        except TEMPLATE_ERRORS as error:
            raise InputError(f"{self._key}: the chat template refuses prompt {prompt.id!r}: {error}") from None

    def token_ids(self, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
        """The token ids of each prompt, up to where its answer begins.

        Raises:
            InputError: as `text` does, or a prompt renders to nothing.
        """
        texts = [self.text(prompt) for prompt in prompts]
        encoded = self._encode(texts)
        if self._template is None:
            encoded = [(*self._prefix, *ids) for ids in encoded]
        for prompt, ids in zip(prompts, encoded, strict=True):
            if not ids:
                raise InputError(f"{self._key}: prompt {prompt.id!r} renders to no tokens")
        return encoded

    def plain_token_ids(self, text: str) -> tuple[int, ...]:
        """The token ids of a text that is to be continued, without a chat template; BOS in front where the tokenizer adds it by itself.

        Raises:
            InputError: it is no tokens.
        """
        ids = (*self._prefix, *self._encode([text])[0])
        if not ids:
            raise InputError("prompt: it renders to no tokens; give some text")
        return ids

    def answer_token_ids(
        self, prompts: Sequence[Prompt], prompt_token_ids: Sequence[Sequence[int]], answers: Sequence[str]
    ) -> list[tuple[int, ...]]:
        """The token ids of given answers as the policy would have written them behind their prompts, without what ends them.

        Prompt and answer are encoded together, because a tokenizer may treat the beginning of a text in a way of its own; only where
        that moves the boundary is the answer encoded alone.
        """
        lead, _ = self._assistant_turn
        prefix = () if self._template is not None else self._prefix
        texts = [self.text(prompt) + lead + answer for prompt, answer in zip(prompts, answers, strict=True)]
        result = []
        for encoded, ids, answer in zip(self._encode(texts), prompt_token_ids, answers, strict=True):
            together = (*prefix, *encoded)
            same = together[: len(ids)] == tuple(ids)
            result.append(together[len(ids) :] if same else self._encode([lead + answer])[0])
        return result

    @property
    def token_ids_after_answer(self) -> tuple[int, ...]:
        """What the chat template writes behind an answer; empty without a template."""
        return self._assistant_turn[1]

    @cached_property
    def _assistant_turn(self) -> tuple[str, tuple[int, ...]]:
        """White space that the template writes before an answer, and the token ids that it writes behind one."""
        if self._template is None:
            return "", ()
        question, answer = Message.of("user", "question"), "answer-of-the-assistant"
        try:
            before = self._written(self._template, [question], generation_prompt=True)
            whole = self._written(self._template, [question, Message.of("assistant", answer)], generation_prompt=False)
        except TEMPLATE_ERRORS:  # a template for single questions
            return "", ()
        start, _, end = whole.rpartition(answer)
        lead = start.removeprefix(before)
        return lead if start.startswith(before) and lead.isspace() else "", self._encode([end])[0]

    def _written(self, template: jinja2.Template, messages: Sequence[Message], *, generation_prompt: bool) -> str:
        turns = [{"role": message.role, "content": message.text} for message in messages]
        return template.render(
            messages=turns, tools=None, documents=None, add_generation_prompt=generation_prompt, **self._special
        )

    def _encode(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        return [tuple(item.ids) for item in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def text_offsets(self, text: str) -> list[int]:
        """Where each token of ``text`` begins, in characters."""
        return [start for start, _ in self.tokenizer.encode(text, add_special_tokens=False).offsets]

    @cached_property
    def _prefix(self) -> tuple[int, ...]:
        """What the tokenizer itself puts before plain text: BOS or nothing. What it would put behind is left out."""
        bos = self.token_id("bos_token")
        asked = self._config.get("add_bos_token")
        if isinstance(asked, bool):
            return (bos,) if asked and bos is not None else ()
        added = self.tokenizer.encode("", add_special_tokens=True).ids
        return (bos,) if bos is not None and added[:1] == [bos] else ()


def _tokenizer(folder: Path, key: str, allow_transformers: bool) -> Tokenizer:
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"{key}: {path} cannot be read ({str(error).splitlines()[0]})") from None
    if not allow_transformers:
        raise InputError(
            f"{key}: {folder} has no tokenizer.json; save the tokenizer once with transformers' save_pretrained"
        )
    built = getattr(transformers_tokenizer(str(folder), None, key), "backend_tokenizer", None)
    if built is None:
        raise InputError(
            f"{key}: transformers has no fast tokenizer for {folder}; a model with tokenizer.json is needed"
        )
    return cast(Tokenizer, built)


def _token_text(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _chat_template(folder: Path, config: dict[str, Any], key: str) -> str | None:
    """The template's text: its own file first, then the one in the tokenizer's configuration."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            with reading(f"{key}: {path}"):
                return path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{key}: {path} is not UTF-8 text; fetch the model again") from None
    value = config.get("chat_template")
    if value is None and (folder / "chat_template.json").is_file():
        value = read_json(folder / "chat_template.json", key).get("chat_template")
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        if "default" not in named:
            raise InputError(f"{key}: the tokenizer has several chat templates and none is called default")
        value = named["default"]
    if value is not None and not isinstance(value, str):
        raise InputError(f"{key}: the tokenizer's chat template must be text")
    return value


class _Generation(Extension):
    """The ``{% generation %}`` block, which some templates put round the assistant's turns; rendering passes it through."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _compile(text: str, key: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    try:
        return environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(
            f"{key}: the chat template is not valid jinja2 (line {error.lineno}: {error.message})"
        ) from None


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja2's own filter escapes HTML, which is no business of a prompt."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: object) -> str:
    raise jinja2.TemplateError(cast(str, message))
