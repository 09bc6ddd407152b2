"""Reads prompts: JSON Lines, CSV, Parquet, or a dataset of the Hugging Face hub; plain text or chat messages.

A bad entry is reported by file and line; nothing is left out in silence (rule 3).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from learner.errors import InputError
from learner.records import Message, Prompt, Role, TextPart
from services.jobs.files import reading
from services.jobs.paths import is_prompt_file
from services.jobs.problems import NOT_TEXT, shown, unique_keys
from services.jobs.spec import PromptsConfig

ROLES = ("system", "user", "assistant")

MAX_DOMAIN_CHARACTERS = 255
"""Of a domain's name, which becomes part of metric names."""

Row = tuple[str, Mapping[str, Any]]
"""Where an entry stands (file and line), and its fields."""


def read_prompts(config: PromptsConfig, base_dir: Path | None = None, key: str = "prompts") -> list[Prompt]:
    """All prompts of a source, in its order; `limit` keeps the first so many.

    Args:
        base_dir: folder that a relative path is taken from; default: the working directory.
        key: the job's key of this section, for errors.

    Raises:
        InputError: the source cannot be read, holds nothing, or an entry is no prompt (its file and line are named).
    """
    return [prompt for _, _, prompt in read_rows(config, base_dir, key)]


def read_rows(
    config: PromptsConfig,
    base_dir: Path | None = None,
    key: str = "prompts",
    turns: Callable[[str, Mapping[str, Any], PromptsConfig], list[Message]] | None = None,
) -> Iterator[tuple[str, Mapping[str, Any], Prompt]]:
    """Each entry of a source: where it stands, its fields, and its prompt.

    Args:
        config, base_dir, key: as `read_prompts` takes them.
        turns: finds the prompt's messages in an entry; default: in the field ``column``.

    Raises:
        InputError: as `read_prompts` does.
    """
    if is_prompt_file(config.source):
        rows = _file_rows((base_dir or Path()) / config.source, key)
    else:
        rows = _hub_rows(config, key)
    first_seen: dict[str, str] = {}
    for number, (where, row) in enumerate(islice(rows, config.limit)):
        prompt = _prompt(where, number, row, config, (turns or prompt_turns)(where, row, config))
        if prompt.id in first_seen:
            raise InputError(
                f"{where}: the id {prompt.id!r} stands at {first_seen[prompt.id]} already; ids must be unique"
            )
        first_seen[prompt.id] = where
        yield where, row, prompt
    if not first_seen:
        raise InputError(f"{key}.source: {config.source} holds no prompts")


def prompt_turns(where: str, row: Mapping[str, Any], config: PromptsConfig) -> list[Message]:
    """The messages in the prompt's field.

    Raises:
        InputError: there is no such field, or it holds no messages.
    """
    if config.column not in row:
        raise InputError(
            f"{where}: there is no field {config.column!r}; name the prompt's field with `column` (here: {', '.join(row)})"
        )
    return chat_turns(where, row[config.column])


def _prompt(
    where: str, number: int, row: Mapping[str, Any], config: PromptsConfig, messages: Sequence[Message]
) -> Prompt:
    if config.system is not None and messages[0].role != "system":
        messages = [Message.of("system", config.system), *messages]
    identity = row.get(config.id_column)
    if identity is None or identity == "":
        identity = number
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        raise InputError(f"{where}: the id must be text or a whole number, not {identity!r}")
    _refuse_no_text(where, "id", str(identity))
    domain = row.get(config.domain_column)
    if domain is not None and not isinstance(domain, str):
        raise InputError(f"{where}: the domain must be text, not {domain!r}")
    if domain is not None:
        _refuse_no_text(where, "domain", domain)
    if domain is not None and len(domain) > MAX_DOMAIN_CHARACTERS:
        raise InputError(
            f"{where}: the domain {short(domain)} has {len(domain)} characters; a domain's name has at most {MAX_DOMAIN_CHARACTERS}"
        )
    try:
        return Prompt(id=str(identity), messages=tuple(messages), domain=domain or None)
    except ValidationError as error:
        raise InputError(f"{where}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def _refuse_no_text(where: str, what: str, name: str) -> None:
    if NOT_TEXT.search(name):
        raise InputError(f"{where}: the {what} {shown(name)} holds NUL or half of a surrogate pair; a name is text")


def chat_turns(where: str, value: object, text_role: Role = "user", what: str = "the prompt") -> list[Message]:
    """Chat turns: a list of messages, or text, which is one turn of ``text_role``.

    Raises:
        InputError: it is neither.
    """
    if isinstance(value, str):
        return [Message(role=text_role, content=(_text_part(where, value, what),))]
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: {what} must be text or a list of chat messages, not {short(value)}")
    messages = []
    for position, entry in enumerate(value):
        if not isinstance(entry, Mapping) or not {"role", "content"} <= entry.keys():
            raise InputError(
                f"{where}: message {position + 1} must be a mapping with `role` and `content`, not {short(entry)}"
            )
        role = entry["role"]
        if role not in ROLES:
            raise InputError(f"{where}: message {position + 1} has the role {role!r}; roles are {', '.join(ROLES)}")
        if role == "system" and position > 0:
            raise InputError(f"{where}: message {position + 1} is a system prompt; it can only be the first message")
        content = entry["content"]
        parts = content if isinstance(content, list) and content else [content]
        messages.append(Message(role=role, content=tuple(_text_part(where, part, what) for part in parts)))
    return messages


def _text_part(where: str, value: object, what: str) -> TextPart:
    if isinstance(value, Mapping):
        if value.get("type") != "text":
            raise InputError(f"{where}: a message's part is of type {value.get('type')!r}; only text is taken for now")
        value = value.get("text")
    if not isinstance(value, str):
        raise InputError(f"{where}: a message must be text, not {short(value)}")
    if not value.strip():
        raise InputError(f"{where}: {what} or one of its messages is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: the text holds half of a surrogate pair, which is no character") from None
    return TextPart(text=value)


def short(value: object) -> str:
    """A value as it may stand in a message: cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _file_rows(path: Path, key: str) -> Iterator[Row]:
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        ".jsonl": json_rows,
        ".csv": _csv_rows,
        ".parquet": _parquet_rows,
    }
    if not path.is_file():
        raise InputError(f"{key}.source: there is no file {path}")
    with reading(f"{key}.source: {path}"):
        yield from readers[path.suffix](path)


def json_rows(path: Path) -> Iterator[Row]:
    """The objects of a JSON Lines file; empty lines are passed over.

    Raises:
        InputError: it cannot be read, or a line holds no JSON object, or one with a key twice.
    """
    with reading(path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                row = json.loads(text, object_pairs_hook=unique_keys) if text else None
            except UnicodeDecodeError:
                raise InputError(f"{where}: not UTF-8 text") from None
            except InputError as error:  # a ValueError too
                raise InputError(f"{where}: {error}") from None
            except (ValueError, RecursionError) as error:
                if isinstance(error, json.JSONDecodeError):
                    reason = f"{error.msg}, column {error.colno}"
                else:
                    reason = "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"
                raise InputError(f"{where}: not JSON ({reason}); each line must hold one JSON object") from None
            if not text:
                continue
            if not isinstance(row, dict):
                raise InputError(f"{where}: each line must hold one JSON object, not {short(row)}")
            yield where, row


def _csv_rows(path: Path) -> Iterator[Row]:
    """Rows of a CSV file with a header. A cell is plain text, never chat messages."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        line = 1
        header: list[str] | None = None
        try:
            for cells in reader:
                where = f"{path}, line {line}"
                line = reader.line_num + 1
                if not cells:
                    continue
                if header is None:
                    header = cells
                    if len(set(header)) != len(header):
                        raise InputError(f"{where}: the header names a column twice")
                    continue
                if len(cells) != len(header):
                    raise InputError(f"{where}: {len(cells)} cells where the header names {len(header)} columns")
                yield where, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise InputError(f"{path}, line {line}: not CSV ({error})") from None
        except UnicodeDecodeError:
            raise InputError(f"{path}, line {line} or after: not UTF-8 text") from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None


def _hub_rows(config: PromptsConfig, key: str) -> Iterator[Row]:
    """Rows of a hub dataset. Needs the `datasets` library and either the network or its cache."""
    import datasets
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        dataset = datasets.load_dataset(config.source, split=config.split)
    except (ValueError, OSError, HfHubHTTPError, httpx.HTTPError, OfflineModeIsEnabled) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{key}.source: the dataset {config.source}, split {config.split}, could not be read from the hub ({reason})"
        ) from None
    for number, row in enumerate(dataset):
        yield f"{config.source} ({config.split}), row {number}", row
