"""Which names in a job are files, and where they are. Paths in a job submitted over REST stay inside configured roots (rule 16)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from learner.errors import InputError
from services.jobs.problems import shown
from services.jobs.spec import JobSpec, PromptsConfig
from workers.config import FunctionScorer

PROMPT_FILES = (".jsonl", ".csv", ".parquet")
HUB_SCORERS = ("llm-blender/PairRM", "llm-blender/PairRM-hf")

_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


def is_hub_name(name: str) -> bool:
    """Whether ``name`` is spelt like a repository of the Hugging Face hub: ``organisation/name``."""
    return _HUB_NAME.match(name) is not None


def is_prompt_file(source: str) -> bool:
    """Whether prompts come from a file, rather than from a dataset of the hub."""
    return source.endswith(PROMPT_FILES)


def resolve_paths(spec: JobSpec, base_dir: Path, allowed_roots: Sequence[Path] | None = None) -> JobSpec:
    """The same job with absolute paths; relative ones are taken from ``base_dir``. Names on the hub stay as they are.

    Args:
        base_dir: the job file's folder.
        allowed_roots: where files may lie, after symbolic links are followed; ``None`` allows every place (the command line).

    Raises:
        InputError: something named is not there, is neither a path nor a hub name, or lies outside the roots.
    """
    places = _Places(base_dir, allowed_roots)
    policy = {"model": places.folder_or_hub("policy.model", spec.policy.model)}
    if spec.policy.adapter is not None:
        policy["adapter"] = places.folder("policy.adapter", spec.policy.adapter)
    changes: dict[str, object] = {
        "policy": spec.policy.model_copy(update=policy),
        "prompts": places.prompts("prompts", spec.prompts),
    }
    if spec.evaluation.prompts is not None:
        prompts = places.prompts("evaluation.prompts", spec.evaluation.prompts)
        changes["evaluation"] = spec.evaluation.model_copy(update={"prompts": prompts})
    if not isinstance(spec.scorer.model, FunctionScorer):
        model = places.folder_or_hub("scorer.model.model", spec.scorer.model.model)
        changes["scorer"] = spec.scorer.model_copy(
            update={"model": spec.scorer.model.model_copy(update={"model": model})}
        )
    return spec.model_copy(update=changes)


class _Places:
    def __init__(self, base_dir: Path, allowed_roots: Sequence[Path] | None) -> None:
        self._base = base_dir
        self._roots = None if allowed_roots is None else [root.resolve() for root in allowed_roots]

    def folder(self, key: str, name: str) -> str:
        path = self._confined(key, name)
        if not path.is_dir():
            raise InputError(f"{key}: there is no folder {path}; name one that is there, or put it there")
        return str(path)

    def folder_or_hub(self, key: str, name: str) -> str:
        """A folder where there is one; else a hub name where it is spelt as one."""
        if is_hub_name(name) and not os.path.isdir(self._base / name):
            return name
        if name.startswith((".", "/", "~")) or os.path.exists(self._base / name):
            return self.folder(key, name)
        raise InputError(
            f"{key}: {name} is neither a folder beside the job file nor a name on the Hugging Face hub (organisation/name)"
        )

    def prompts(self, key: str, config: PromptsConfig) -> PromptsConfig:
        name = config.source
        if is_prompt_file(name):
            path = self._confined(f"{key}.source", name)
            if not path.is_file():
                raise InputError(f"{key}.source: there is no file {path}; name one that is there, or put it there")
            if not is_prompt_file(path.name):
                path = self._link(f"{key}.source", name, path)
            return config.model_copy(update={"source": str(path)})
        if is_hub_name(name) and not os.path.exists(self._base / name):  # pathlib's raises where a name is too long
            return config
        raise InputError(
            f"{key}.source: {name} is neither a .jsonl, .csv or .parquet file nor a dataset on the Hugging Face hub (organisation/name)"
        )

    def _link(self, key: str, name: str, file: Path) -> Path:
        """A link to a file of another ending, as caches have them: it keeps its name, which says how the file is read.

        Its folder must lie inside the roots too, and nothing between it and the file, or somebody else could let it lead elsewhere later.
        """
        given = Path(name).expanduser()
        link = self._confined(key, str(given.parent)) / given.name
        if self._roots is not None and os.path.normpath(link.parent / link.readlink()) != str(file):
            raise InputError(
                f"{key}: {name} leads over other links to {file}, a file of another ending; let it point at that file itself"
            )
        return link

    def _confined(self, key: str, name: str) -> Path:
        try:
            path = (self._base / Path(name).expanduser()).resolve()
            path.exists()
        except (OSError, RuntimeError) as error:  # too long, a circle of links, or nobody's home
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise InputError(f"{key}: {shown(name)} is no path that can be followed ({reason}); name another") from None
        if self._roots is not None and not any(path.is_relative_to(root) for root in self._roots):
            allowed = ", ".join(str(root) for root in self._roots) or "none are configured"
            raise InputError(f"{key}: {name} lies outside the folders that jobs may read ({allowed})")
        return path
