"""What can keep the service from chatting, beside what is wrong with a request."""

from __future__ import annotations


class ChatUnavailable(RuntimeError):
    """Nobody can answer now. ``retry_seconds`` says when to try again."""

    def __init__(self, message: str, retry_seconds: int = 30) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds
