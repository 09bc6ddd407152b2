"""Reads the ends of a job's log files: each worker and attempt writes its own."""

from __future__ import annotations

from pathlib import Path

from learner.errors import InputError

BLOCK_BYTES = 1 << 16


def tail(path: Path, lines: int) -> str:
    """The last lines of a text file, read from its end."""
    found = b""
    with path.open("rb") as file:
        position = file.seek(0, 2)
        while position > 0 and found.count(b"\n") <= lines:
            size = min(BLOCK_BYTES, position)
            position -= size
            file.seek(position)
            found = file.read(size) + found
    return "\n".join(found.decode("utf-8", errors="replace").splitlines()[-lines:])


def tails(folder: Path, lines: int, name: str | None = None) -> str:
    """The ends of all log files, each under its name, or of the one that is asked for.

    Raises:
        InputError: there is no file of that name.
    """
    names = sorted(path.name for path in folder.glob("*.log")) if folder.is_dir() else []
    if name is not None:
        if name not in names:  # also keeps a name from leaving the folder
            raise InputError(f"file: there is no log {name!r}; there are: {', '.join(names) or 'none yet'}")
        return tail(folder / name, lines) + "\n"
    return "\n".join(f"==> {each} <==\n{tail(folder / each, lines)}\n" for each in names)
