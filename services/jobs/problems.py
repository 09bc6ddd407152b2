"""Pydantic's complaints about a job, said as sentences with the key's path (rule 15).

A person sees ``schedule.rounds: 0 is too small; it must be at least 1`` and never pydantic's own text.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic.fields import FieldInfo

from learner.errors import InputError

NOT_TEXT = re.compile("[\0\ud800-\udfff]")
"""What JSON can write into a text, and files and databases cannot hold: NUL, and half of a surrogate pair."""

LONGEST_PATH = 200
"""Characters of a key's path in a message."""

SHOWN_CHARACTERS = 80
"""Of a value in a message."""


LARGEST_INTEGER = (1 << 63) - 1
"""What databases and arrays hold."""


def shown(value: object) -> str:
    """A value as a job file would write it, cut to a readable length."""
    # only as much of it is written as is shown: a few YAML aliases can stand for more than memory holds
    parts = json.JSONEncoder(ensure_ascii=False, default=str).iterencode(value)
    try:
        text = "".join(islice(parts, SHOWN_CHARACTERS + 1))
    except (TypeError, ValueError):  # a key that is no text, a list that holds itself, or thousands of digits
        text = f"a value of type {type(value).__name__}"
    text = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
    return spelt(text)


def spelt(text: str) -> str:
    """A text with the halves of surrogate pairs, which cannot be sent or stored, spelt out."""
    return text.encode(errors="backslashreplace").decode()


Spelt = Annotated[str, BeforeValidator(spelt)]
"""A text that can be sent: an error's, which may quote anything."""


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """What `json` makes an object of, in place of its own rule that the last of two equal keys counts.

    Raises:
        InputError: a key stands twice.
    """
    keys: dict[str, Any] = {}
    for key, value in pairs:
        if key in keys:
            raise InputError(f"the key `{spelt(key)}` stands twice in one mapping; keep one")
        keys[key] = value
    return keys


def one_of(options: Sequence[object]) -> str:
    """``a``, ``a or b``, ``a, b or c``."""
    texts = [shown(option) if not isinstance(option, str) else option for option in options]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def sentences(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One sentence for each key that is wrong, in the order of the file."""
    found: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        path, owner, field = _locate(model, problem["loc"])
        if len(path) > LONGEST_PATH:
            path = path[:LONGEST_PATH] + "..."
        found.setdefault(path, _sentence(path, owner, field, problem).removeprefix(": "))
    return list(found.values())


def odd_values(data: object, resolved: object, path: str = "") -> Iterator[str]:
    """What pydantic lets pass although nobody means it: yes and no where a number belongs, numbers without an end, text that is none."""
    if isinstance(resolved, Mapping):
        given = data if isinstance(data, Mapping) else {}
        for key, value in resolved.items():
            name = f"{path}.{key}" if path else str(key)
            yield from odd_values(str(key), str(key), name)
            yield from odd_values(given.get(key), value, name)
    elif isinstance(resolved, list | tuple):
        items = data if isinstance(data, list | tuple) else [None] * len(resolved)
        for index, (item, value) in enumerate(zip(items, resolved, strict=False)):
            yield from odd_values(item, value, f"{path}[{index}]")
    elif isinstance(resolved, str):
        if not_text := NOT_TEXT.search(resolved):
            yield f"{path}: {shown(resolved)} holds {shown(not_text[0])}, which is no character of a text; leave it out"
    elif isinstance(resolved, int | float) and not isinstance(resolved, bool):
        if isinstance(data, bool):
            yield f"{path}: {shown(data)} is not a number"
        elif isinstance(resolved, int):
            if abs(resolved) > LARGEST_INTEGER:
                yield f"{path}: {shown(resolved)} is too large; it must be at most {LARGEST_INTEGER}"
        elif not math.isfinite(resolved):
            yield f"{path}: {resolved} is not a finite number"


def _locate(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, type[BaseModel] | None, FieldInfo | None]:
    """The key's path as the file spells it, the model that owns the key, and the key's field where it is known.

    Pydantic's own location has the union's tag or member between the keys (``objective.sppo.beta``).
    """
    path = ""
    owner: type[BaseModel] | None = model
    field: FieldInfo | None = None
    remaining = list(loc)
    while remaining:
        part = remaining.pop(0)
        if isinstance(part, int):
            path += f"[{part}]"
            continue
        path = f"{path}.{part}" if path else part
        if owner is None:
            continue
        field = owner.model_fields.get(part)
        if field is None:
            continue
        if not remaining:
            break
        members = _models(field.annotation)
        if field.discriminator is not None:
            tag = remaining.pop(0)
            owner = next((member for member in members if _tag(member, str(field.discriminator)) == tag), None)
            field = None if remaining else field
        elif len(members) == 1:
            owner = members[0]
        else:
            owner = None if get_origin(field.annotation) is dict else owner
            if _is_union(field.annotation):
                break
    return path, owner, field


def _models(annotation: Any) -> list[type[BaseModel]]:
    candidates = get_args(annotation) if _is_union(annotation) else (annotation,)
    return [member for member in candidates if isinstance(member, type) and issubclass(member, BaseModel)]


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _is_plain_union(field: FieldInfo) -> bool:
    """Whether the field takes one of several plain types, so that pydantic complains once for each."""
    return _is_union(field.annotation) and field.discriminator is None and not _models(field.annotation)


def _tag(model: type[BaseModel], discriminator: str) -> object:
    return model.model_fields[discriminator].default


def _described(annotation: Any) -> str:
    """What a field takes, in words."""
    if _is_union(annotation):
        return one_of([_described(member) for member in get_args(annotation) if member is not type(None)])
    origin = get_origin(annotation)
    if origin is Literal:
        return one_of(get_args(annotation))
    if origin is tuple:
        members = get_args(annotation)
        if len(members) == 2 and members[1] is Ellipsis:
            return f"a list of {_described(members[0])}"
        return f"a list of {len(members)} numbers"
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}.get(annotation, "a mapping")


def _sentence(path: str, owner: type[BaseModel] | None, field: FieldInfo | None, problem: Mapping[str, Any]) -> str:
    kind = problem["type"]
    context = problem.get("ctx", {})
    value = shown(problem["input"])
    if kind == "missing":
        return f"{path}: missing; it is required"
    if kind == "extra_forbidden":
        return f"{path}: unknown key{_suggestion(path, owner)}"
    if kind == "value_error":
        inner = _models(field.annotation) if field is not None else []
        return _joined(path, str(context["error"]), inner[0] if len(inner) == 1 else owner)
    out_of_range = kind.startswith(("greater_than", "less_than"))
    if kind == "too_long" and context.get("actual_length") is None:
        return f"{path}: there are more than {context['max_length']} entries; leave some out"
    if field is not None and _is_plain_union(field) and not out_of_range and not kind.startswith("string_too"):
        return f"{path}: {value} does not fit; it must be {_described(field.annotation)}"
    texts = {
        "greater_than_equal": "{value} is too small; it must be at least {ge}",
        "greater_than": "{value} is too small; it must be more than {gt}",
        "less_than_equal": "{value} is too large; it must be at most {le}",
        "less_than": "{value} is too large; it must be less than {lt}",
        "literal_error": "{value} is not known; it must be {expected}",
        "string_type": "{value} must be text; put it in quotes if it is meant so",
        "string_too_short": "{value} is empty; give some text",
        "string_too_long": "{value} is too long; it must have at most {max_length} characters",
        "string_pattern_mismatch": "{value} does not fit the pattern {pattern}",
        "int_type": "{value} is not a whole number",
        "int_parsing": "{value} is not a whole number",
        "int_from_float": "{value} is not a whole number",
        "float_type": "{value} is not a number",
        "float_parsing": "{value} is not a number",
        "bool_type": "{value} is neither true nor false",
        "bool_parsing": "{value} is neither true nor false",
        "union_tag_not_found": "the key `kind` is missing; it must be {tags}",
        "model_type": "{value} must be a mapping of keys to values",
        "model_attributes_type": "{value} must be a mapping of keys to values",
        "dict_type": "{value} must be a mapping of keys to values",
        "tuple_type": "{value} must be a list",
        "string_unicode": "{value} holds half of a surrogate pair, which is no character of a text; leave it out",
        "invalid_key": "{value} stands where a key belongs, and keys are text; put it in quotes if it is meant so",
        "too_short": "the list has {actual_length} entries; it must have {min_length}",
        "too_long": "the list has {actual_length} entries; it must have {max_length}",
    }
    names = {"value": value, **context}
    if kind == "literal_error":
        names["expected"] = _described(field.annotation) if field is not None else str(context.get("expected"))
    if kind == "union_tag_invalid":
        tags = str(context["expected_tags"]).replace("'", "").split(", ")
        return f"{path}.kind: {shown(context['tag'])} is not known; it must be {one_of(tags)}"
    if kind == "union_tag_not_found" and field is not None:
        names["tags"] = one_of([str(_tag(member, str(field.discriminator))) for member in _models(field.annotation)])
    if out_of_range:
        names = {name: f"{limit:g}" if isinstance(limit, float) else limit for name, limit in names.items()}
    if kind == "string_pattern_mismatch" and field is not None and field.description:
        return f"{path}: {value} is not allowed. {field.description}"
    if kind in texts:
        return f"{path}: {texts[kind].format(**names)}"
    return f"{path}: {value} is not allowed ({problem['msg']})"


def _joined(path: str, text: str, owner: type[BaseModel] | None) -> str:
    """A validator's sentence that begins with its field's name continues the path; another one follows it."""
    name = text.split(":", 1)[0]
    if owner is not None and name in owner.model_fields:
        return f"{path}.{text}" if path else text
    return f"{path}: {text}" if path else text


def _suggestion(path: str, owner: type[BaseModel] | None) -> str:
    if owner is None:
        return ""
    key = path.rsplit(".", 1)[-1]
    close = difflib.get_close_matches(key, owner.model_fields, n=1)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; the keys here are {', '.join(owner.model_fields)}"
