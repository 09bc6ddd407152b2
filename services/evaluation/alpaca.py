"""AlpacaEval's ``model_outputs.json``: answers to instructions as its tools write and read them (arXiv 2404.04475).

A list of objects with ``instruction``, ``output``, ``generator`` and ``dataset``. Ours carry the prompt's ``id`` too, which its tools pass
over. Files in JSON Lines, one such object in a line, are read as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learner.errors import InputError
from learner.records import Prompt
from services.jobs.files import reading
from services.jobs.paths import is_hub_name, is_prompt_file
from services.jobs.prompts import json_rows, read_prompts, short
from services.jobs.spec import PromptsConfig

DATASET = "sparring"


@dataclass(frozen=True)
class GivenAnswers:
    """The answers of a file: by the prompt's id and text where the file has ids, and by the text alone."""

    path: Path
    generator: str
    prompts: tuple[Prompt, ...]
    by_prompt: Mapping[tuple[str, str], str]
    by_text: Mapping[str, str]

    def answers(self, prompts: Sequence[Prompt]) -> list[str]:
        """The answer to each prompt.

        Raises:
            InputError: there is none to one of them.
        """
        texts = [instruction(prompt) for prompt in prompts]
        found = [
            self.by_prompt.get((prompt.id, text), self.by_text.get(text))
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        missing = [prompt for prompt, answer in zip(prompts, found, strict=True) if answer is None]
        if missing:
            raise InputError(
                f"{self.path}: holds no answer to {len(missing)} of {len(prompts)} prompts, the first is {missing[0].id!r} "
                f"({short(instruction(missing[0]))}); answer them too, or take them out of the prompts"
            )
        return [answer for answer in found if answer is not None]


def instruction(prompt: Prompt) -> str:
    """A prompt as one text: its turns in order."""
    return "\n\n".join(message.text for message in prompt.messages)


def is_answers_file(name: str) -> bool:
    """Whether a side is a file of answers, by its name's ending."""
    return name.endswith((".json", ".jsonl"))


def read_answers(path: Path) -> GivenAnswers:
    """Read a file of answers. An object without an ``id`` is found by its instruction.

    Raises:
        InputError: the file cannot be read, holds nothing, an object lacks a field, or two are answers to the same prompt.
    """
    prompts: list[Prompt] = []
    by_prompt: dict[tuple[str, str], str] = {}
    ids: set[str] = set()
    by_text: dict[str, str] = {}
    generators: list[str] = []
    for where, row in _rows(path):
        text, output = _text(where, row, "instruction"), _text(where, row, "output", empty=True)
        identity = row.get("id")
        if identity is None:
            if text in by_text:
                raise InputError(f"{where}: the instruction {short(text)} stands twice; keep one, or give both an id")
            by_text[text] = output
        elif not isinstance(identity, str) or not identity or identity in ids:
            raise InputError(
                f"{where}: the id must be text that no other object has, not {short(identity)}; change it, or leave it out"
            )
        else:
            ids.add(identity)
            by_prompt[identity, text] = output
            by_text.setdefault(text, output)
        prompts.append(Prompt.of(identity or f"i{len(prompts)}", text))
        generators.append(str(row.get("generator") or path.stem))
    if not prompts:
        raise InputError(f"{path}: holds no answers")
    return GivenAnswers(path, generators[0], tuple(prompts), by_prompt, by_text)


def read_evaluation_prompts(name: str, *, limit: int | None, column: str, split: str) -> list[Prompt]:
    """The prompts to evaluate on: as a job reads them, or the instructions of an AlpacaEval file (``.json``).

    Args:
        name: a .jsonl, .csv or .parquet file, a dataset of the hub, or a ``.json`` list of objects with ``instruction``.
        limit: only the first so many.
        column: field of the prompt in files of a job's kind.
        split: of a hub dataset.

    Raises:
        InputError: they cannot be read, or there are none.
    """
    if not name.endswith(".json"):
        if not is_prompt_file(name) and (Path(name).exists() or not is_hub_name(name)):
            raise InputError(
                f"--prompts: {name} is neither a .jsonl, .csv, .parquet or .json file nor a dataset on the Hugging Face hub"
            )
        return read_prompts(PromptsConfig(source=name, column=column, split=split, limit=limit), key="--prompts")
    prompts: list[Prompt] = []
    for number, (where, row) in enumerate(_rows(Path(name))):
        prompts.append(Prompt.of(str(row.get("id") or f"i{number}"), _text(where, row, "instruction")))
    if not prompts:
        raise InputError(f"{name}: holds no prompts")
    if len({prompt.id for prompt in prompts}) < len(prompts):
        raise InputError(f"{name}: an id stands twice; ids must be unique")
    return prompts[:limit]


def write_answers(path: Path, prompts: Sequence[Prompt], answers: Sequence[str], generator: str) -> None:
    """Write answers as AlpacaEval reads them."""
    rows = [
        {
            "instruction": instruction(prompt),
            "output": answer,
            "generator": generator,
            "dataset": prompt.domain or DATASET,
            "id": prompt.id,
        }
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".jsonl":
        yield from json_rows(path)
        return
    try:
        with reading(path):
            data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({str(error) or 'nested too deeply'})") from None
    if not isinstance(data, list):
        raise InputError(f"{path}: must hold a list of objects with `instruction` and `output`, not {short(data)}")
    for number, row in enumerate(data, start=1):
        if not isinstance(row, dict):
            raise InputError(
                f"{path}, object {number}: must be an object with `instruction` and `output`, not {short(row)}"
            )
        yield f"{path}, object {number}", row


def _text(where: str, row: Mapping[str, Any], field: str, *, empty: bool = False) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not (empty or value.strip()):
        raise InputError(f"{where}: `{field}` must be text, not {short(value)}")
    return value
