"""The demo's policy: a byte-level BPE tokenizer and a small Llama, both trained from nothing on answers of mixed quality.

Torch and transformers are imported when something is trained, not when this module is. Everything follows from the texts and the
seed: on one machine, with one number of threads, the same bytes come out.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learner.seeds import derive_seed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

Progress = Callable[[int, int], None]
"""Called with (done, total) as the work goes on."""

Row = tuple[list[int], int]
"""Token ids of a question with its answer, and how many of them are the question's."""

VOCABULARY = 512
CONTEXT_TOKENS = 256
PAD, BOS, EOS, USER, ASSISTANT = "<pad>", "<bos>", "<eos>", "<user>", "<assistant>"
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<assistant>{{ message['content'] }}{{ eos_token }}"
    "{% else %}<user>{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass(frozen=True)
class PolicyRecipe:
    """How the policy is built. The head size must be one that vLLM's CPU backend knows: 128 / 4 = 32."""

    layers: int = 4
    hidden: int = 128
    heads: int = 4
    intermediate: int = 352
    steps: int = 300
    batch: int = 64
    learning_rate: float = 4e-3
    warmup_steps: int = 20


@contextmanager
def torch_settings(threads: int, seed: int) -> Iterator[None]:
    """Fixed thread count and seed for the time of a training; the caller's settings come back afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(before)


def train_tokenizer(texts: Sequence[str], out: Path) -> PreTrainedTokenizerFast:
    """Train the BPE on ``texts`` and save it as a folder that transformers and the bare ``tokenizers`` library both read."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[PAD, BOS, EOS, USER, ASSISTANT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    fast.save_pretrained(out)
    return fast


def render(tokenizer: PreTrainedTokenizerFast, questions: Sequence[str]) -> list[list[int]]:
    """The token ids of each question's single user turn, ready for the answer."""
    turns = [[{"role": "user", "content": question}] for question in questions]
    ids: list[list[int]] = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    return ids


def train_policy(
    pairs: Sequence[tuple[str, str]],
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    *,
    seed: int,
    threads: int,
    progress: Progress,
    recipe: PolicyRecipe = PolicyRecipe(),
) -> float:
    """Train the Llama on (question, answer) ``pairs``, in their order, and save it into ``out``.

    The loss is the mean negative log-likelihood of the answers' tokens, EOS included; questions are not learned.

    Returns:
        The mean loss of the last tenth of the steps, in nats a token.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    prompts = render(tokenizer, [question for question, _ in pairs])
    completions = tokenizer([answer for _, answer in pairs], add_special_tokens=False)["input_ids"]
    rows = [
        ([*prompt, *completion, tokenizer.eos_token_id], len(prompt))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    with torch_settings(threads, derive_seed("demo", seed, "policy")):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=recipe.hidden,
                intermediate_size=recipe.intermediate,
                num_hidden_layers=recipe.layers,
                num_attention_heads=recipe.heads,
                num_key_value_heads=recipe.heads,
                max_position_embeddings=CONTEXT_TOKENS,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                tie_word_embeddings=False,
                # The usual 0.02 suits a width of thousands; in a narrow model learning starts late with it.
                initializer_range=recipe.hidden**-0.5,
            )
        )
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
        losses = []
        batches = _batches(rows, recipe, random.Random(derive_seed("demo", seed, "batches")))
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * _warmup_cosine(step, recipe)
            input_ids, attention_mask, labels = _pad(batch, tokenizer.pad_token_id)
            loss = model(input_ids=input_ids, attention_mask=attention_mask, labels=labels, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            progress(step + 1, recipe.steps)
        model.eval()
        model.save_pretrained(out)
    _write_generation_config(out, tokenizer)
    tail = losses[-max(recipe.steps // 10, 1) :]
    return float(sum(tail) / len(tail))


def sample_answers(
    folder: Path, questions: Sequence[str], *, count: int, max_tokens: int, seed: int, threads: int, progress: Progress
) -> list[list[str]]:
    """``count`` answers of the saved policy to each question, at temperature 1.

    Plain transformers generation: good for a few hundred questions; a job's samplers use vLLM.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers: list[list[str]] = []
    batch = 64
    with torch_settings(threads, derive_seed("demo", seed, "samples")), torch.no_grad():
        for start in range(0, len(questions), batch):
            rendered = render(tokenizer, questions[start : start + batch])
            inputs = tokenizer.pad({"input_ids": rendered}, padding_side="left", return_tensors="pt")
            generated = model.generate(
                **inputs,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                num_return_sequences=count,
                max_new_tokens=max_tokens,
            )
            texts = tokenizer.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            answers += [texts[row * count : (row + 1) * count] for row in range(len(rendered))]
            progress(min(start + batch, len(questions)), len(questions))
    return answers


def _batches(rows: Sequence[Row], recipe: PolicyRecipe, rng: random.Random) -> Iterator[list[Row]]:
    """``recipe.steps`` batches of rows of similar length, which spares a quarter of the time in padding."""
    needed = recipe.steps * recipe.batch
    order = [row for start in range(0, needed, len(rows)) for row in rows][:needed]
    pool = 8 * recipe.batch
    for start in range(0, needed, pool):
        part = sorted(order[start : start + pool], key=lambda row: len(row[0]))
        batches = [part[first : first + recipe.batch] for first in range(0, len(part), recipe.batch)]
        rng.shuffle(batches)
        yield from batches


def _warmup_cosine(step: int, recipe: PolicyRecipe) -> float:
    """Share of the peak learning rate at ``step``: a linear rise, then half a cosine down to a fiftieth."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(recipe.steps - recipe.warmup_steps, 1)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def _pad(batch: Sequence[Row], pad_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded ids, attention mask and labels, ``[rows, longest]``; labels are -100 on prompts and padding."""
    import torch

    longest = max(len(ids) for ids, _ in batch)
    input_ids = torch.full((len(batch), longest), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, -100)
    for row, (ids, prompt_length) in enumerate(batch):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention_mask[row, : len(ids)] = 1
        labels[row, prompt_length : len(ids)] = torch.tensor(ids[prompt_length:])
    return input_ids, attention_mask, labels


def _write_generation_config(out: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """State the ids that end an answer, and nothing about sampling: that is the job's to say."""
    content: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    path = out / "generation_config.json"
    path.write_text(json.dumps(content, indent=2) + os.linesep, encoding="utf-8")
