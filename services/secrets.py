"""Keeps secrets out of logs, events and answers: keys, tokens and passwords are replaced by ``***`` wherever text leaves.

Known by their form (our keys, tokens of the Hugging Face hub, Authorization headers, passwords in URLs), and by their value, where an
environment variable of this process says by its name that it holds one. A net under the rule that nothing writes them in the first place.
"""

from __future__ import annotations

import logging
import os
import re
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Literal, TypeVar

from services.access.keys import KEY_PATTERN
from workers.logs import JsonLines

MASK = "***"

SHORTEST_SECRET = 8
"""Characters. Shorter values of variables are not looked for: masking every ``1`` would hide more than a secret."""

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the request that is being answered, for the log."""

_SECRET_VARIABLE = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|API_?KEY|ACCESS_KEY)(_ID)?$", re.IGNORECASE)
_WORDS = re.compile(rf"(?<![A-Za-z0-9])(?:{KEY_PATTERN}|hf_[A-Za-z0-9]{{16,}})")
_AUTHORIZATION = re.compile(
    r"(?P<before>authorization['\"]?\s*[:=,]\s*b?['\"]?\s*(?:(?:bearer|basic|token)\s+)?|\bbearer\s+)(?P<secret>[^\s'\",;]{8,})",
    re.IGNORECASE,
)
_URL_PASSWORD = re.compile(r"(?P<before>\b[a-z][a-z0-9+.-]*://[^\s/:@'\"]*:)[^\s/@'\"]+(?=@)", re.IGNORECASE)

Json = TypeVar("Json")


def mask(text: str) -> str:
    """The text without what looks like a secret, or is one of this process's environment."""
    for value in _values(os.environ):
        text = text.replace(value, MASK)
    text = _WORDS.sub(MASK, text)
    text = _AUTHORIZATION.sub(rf"\g<before>{MASK}", text)
    return _URL_PASSWORD.sub(rf"\g<before>{MASK}", text)


def mask_json(value: Json) -> Json:
    """The same for every text inside lists and mappings; their keys stay."""
    masked: Any = value
    if isinstance(value, str):
        masked = mask(value)
    elif isinstance(value, Mapping):
        masked = {key: mask_json(each) for key, each in value.items()}
    elif isinstance(value, list | tuple):
        masked = [mask_json(each) for each in value]
    return masked  # type: ignore[no-any-return]


class MaskSecrets(logging.Filter):
    """Masks every record, its traceback too, and gives it the request's id (``request``: ``-`` outside of one).

    Belongs on handlers: a logger's own filters do not see what its children log.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the masked record pass."""
        record.request = request_id.get() or "-"
        if request_id.get() is not None:
            record.request_id = request_id.get()
        record.msg, record.args = mask(record.getMessage()), None
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = mask("".join(traceback.format_exception(*record.exc_info)).rstrip())
        elif record.exc_text:
            record.exc_text = mask(record.exc_text)
        if record.stack_info:
            record.stack_info = mask(record.stack_info)
        return True


def log_safely(level: int = logging.INFO, form: Literal["text", "json"] = "text") -> None:
    """Set up this process's log: on stderr, a line per record with the request's id, as text or JSON, secrets masked."""
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s [%(request)s] %(message)s")
    handler.setFormatter(text if form == "text" else JsonLines(worker="service"))
    handler.addFilter(MaskSecrets())
    logging.basicConfig(level=level, handlers=[handler], force=True)


def _values(environment: Mapping[str, str]) -> list[str]:
    """Secrets in the environment, the longest first: one may be part of another."""
    found = {
        value.strip()
        for name, value in environment.items()
        if _SECRET_VARIABLE.search(name) and len(value.strip()) >= SHORTEST_SECRET
    }
    return sorted(found, key=len, reverse=True)
