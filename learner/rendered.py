"""Whether prompts were rendered as transformers would have rendered them (rule 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from learner.errors import InputError
from learner.records import Prompt


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt with the token ids that sampler and learner share, up to where its answer begins."""

    prompt: Prompt
    token_ids: tuple[int, ...]


def refuse_difference_from_transformers(
    model: str, prompts: Sequence[RenderedPrompt], *, revision: str | None = None, key: str = "policy.model"
) -> None:
    """Compare with what transformers makes of ``prompts``. Imports transformers and, with it, torch.

    Args:
        model: a model folder, or a name on the hub.
        revision: of a hub model.
        key: the job's key that names the model, for errors.

    Raises:
        InputError: it renders one of them to other ids, so the tokenizer's files are not read as they are meant.
    """
    tokenizer = transformers_tokenizer(model, revision, key)
    for rendered in prompts:
        if _token_ids(tokenizer, rendered.prompt) != rendered.token_ids:
            raise InputError(
                f"{key}: transformers renders prompt {rendered.prompt.id!r} to other token ids than tokenizer.json does; save the "
                "tokenizer again with the transformers release that is installed here"
            )


def transformers_tokenizer(model: str, revision: str | None, key: str) -> Any:
    """The tokenizer as transformers reads it.

    Raises:
        InputError: it cannot.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
    except (ValueError, OSError, ImportError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{key}: transformers cannot read the tokenizer of {model} ({reason})") from None


def _token_ids(tokenizer: Any, prompt: Prompt) -> tuple[int, ...]:
    if tokenizer.chat_template is None:  # plain text; what the tokenizer would put behind it is left out
        ids = list(tokenizer(prompt.messages[0].text)["input_ids"])
        return tuple(ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids)
    messages = [{"role": message.role, "content": message.text} for message in prompt.messages]
    return tuple(tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False))
