"""Files that the system does not let be read or written, as a person is told of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from learner.errors import InputError


@contextmanager
def reading(what: object) -> Iterator[None]:
    """Say in a sentence that begins with ``what`` why it cannot be read.

    Raises:
        InputError: the system does not let it be read.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{what} cannot be read ({_reason(error)}); let this user read it, or name another") from None


@contextmanager
def writing(what: object) -> Iterator[None]:
    """Say in a sentence that begins with ``what`` why it cannot be written.

    Raises:
        InputError: the system does not let it be written.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{what} cannot be written ({_reason(error)}); name a place that this user may write to"
        ) from None


def _reason(error: OSError) -> str:
    return error.strerror or " ".join(str(error).split())
