"""Errors that people cause and can mend."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input, said in one sentence: the field, its value, what is allowed, and what to do.

    The command line prints the sentence and exits with code 2; the REST API answers with a 4xx. Never a traceback.
    """
