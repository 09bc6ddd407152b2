"""Reads a job file (YAML or JSON), or the data of a REST request, into a `JobSpec`."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from learner.errors import InputError
from services.jobs.problems import odd_values, sentences, shown, unique_keys
from services.jobs.spec import JobSpec


def load_job(path: Path) -> JobSpec:
    """The specification in a job file: JSON where the name ends in ``.json``, YAML otherwise.

    Paths inside stay as written: `services.jobs.paths.resolve_paths` takes them from the file's folder.

    Raises:
        InputError: the file cannot be read or a key is wrong; one line for each problem, the key's path first.
    """
    return parse_job(read_mapping(path))


def parse_job(data: object) -> JobSpec:
    """The specification in plain data, as a job file or a request holds it.

    Raises:
        InputError: one line for each key that is wrong, its path first.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"a job must be a mapping of keys to values, not {shown(data)}")
    try:
        spec = JobSpec.model_validate(data)
    except ValidationError as error:
        raise InputError("\n".join(sentences(error, JobSpec))) from None
    if odd := list(odd_values(data, spec.model_dump())):
        raise InputError("\n".join(odd))
    return spec


def read_mapping(path: Path) -> Mapping[str, Any]:
    """The keys and values of a YAML or JSON file; a key that stands twice is refused.

    Raises:
        InputError: no such file, not text, not YAML or JSON (with the line), a key twice, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; name the job file inside it") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return _mapping(path, _json(path, text) if path.suffix == ".json" else _yaml(path, text, _UniqueKeys))


def written_mapping(text: str) -> Mapping[str, Any]:
    """The keys and values of a job file that somebody wrote into a form, as YAML, of which JSON is a part.

    Raises:
        InputError: as `read_mapping`; and aliases, which let a few lines stand for millions.
    """
    name = Path("the job")
    return _mapping(name, _yaml(name, text, _WithoutAliases))


def _mapping(path: Path, data: Any) -> Mapping[str, Any]:
    if data is None:
        raise InputError(f"{path}: is empty; a job needs at least `policy` and `prompts`")
    if not isinstance(data, Mapping):
        raise InputError(f"{path}: a job must be a mapping of keys to values, not {shown(data)}")
    return data


def _json(path: Path, text: str) -> Any:
    if not text.strip():
        return None
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})") from None
    except InputError as error:  # a ValueError too
        raise InputError(f"{path}: {error}") from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path}: {_unreadable(error)}") from None


def _unreadable(error: Exception) -> str:
    """Why Python cannot hold what is well written otherwise."""
    if isinstance(error, RecursionError):
        return "nested too deeply; a job has a handful of levels"
    return f"a value cannot be read ({str(error).split(';')[0]}); correct it"


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, which takes the last of two equal keys in silence; this one refuses them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # the base class says so, with the line
            if key in seen:
                problem = f"the key `{key}` stands twice in one mapping; keep one"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _WithoutAliases(_UniqueKeys):
    """The same for text that comes from elsewhere."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            problem = "aliases (*) are not allowed here; write the value out"
            raise yaml.composer.ComposerError(None, None, problem, self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)


def _yaml(path: Path, text: str, loader: type[_UniqueKeys]) -> Any:
    try:
        return yaml.load(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{path}{where}: {error.problem or 'not YAML'}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML ({str(error).splitlines()[0]})") from None
    except (RecursionError, ValueError) as error:  # a date that no calendar has, a number of thousands of digits
        raise InputError(f"{path}: {_unreadable(error)}") from None
