"""The chunked likelihood gives what the whole logits give, for every family, whatever the padding."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTBigCodeConfig, OPTConfig, PreTrainedConfig, Starcoder2Config

from learner.config import AdapterConfig
from learner.errors import InputError
from learner.likelihood import TOKEN_MEASURES, AutoregressiveLikelihood, collate
from learner.policy import FIRST, Policy
from tests.learner.builders import FAMILIES, tiny_model

TEXTS = [([1, 5, 9], [4, 7, 2]), ([3], [8, 8, 8, 8, 6, 2]), ([1, 2, 3, 4, 5, 6, 7], [2])]
CPU = torch.device("cpu")


def naive(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].float()
    logps = torch.log_softmax(logits, dim=-1)
    return torch.stack([logps[len(prompt) - 1 + i, token] for i, token in enumerate(answer)])


@pytest.mark.parametrize(("family", "tied"), list(product(FAMILIES, [False, True])))
def test_token_log_probabilities_equal_the_naive_ones_for(family: str, tied: bool) -> None:
    model = tiny_model(family, tied)
    likelihood = AutoregressiveLikelihood(model, chunk_tokens=4)
    batch = collate(TEXTS, CPU)
    with torch.no_grad():
        found = torch.split(likelihood.token_logps(batch), list(batch.counts))
        for (prompt, answer), logps in zip(TEXTS, found, strict=True):
            torch.testing.assert_close(logps, naive(model, prompt, answer), atol=2e-5, rtol=0)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_the_gradient_does_not_depend_on_the_chunk_and_equals_the_naive_one(chunk: int) -> None:
    model = tiny_model().double()
    parameter = model.model.layers[0].mlp.up_proj.weight

    def gradient(value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, parameter)[0]

    sums = AutoregressiveLikelihood(model, chunk).sequence_logps(collate(TEXTS, CPU))
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    logits = [model(input_ids=torch.tensor([p + a])).logits[0].log_softmax(-1) for p, a in TEXTS]
    whole = torch.stack(
        [
            torch.stack([x[len(p) - 1 + i, t] for i, t in enumerate(a)]).sum()
            for x, (p, a) in zip(logits, TEXTS, strict=True)
        ]
    )
    torch.testing.assert_close(
        gradient((sums * weights).sum()), gradient((whole * weights).sum()), atol=1e-9, rtol=1e-9
    )


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_padding_changes_nothing(family: str) -> None:
    likelihood = AutoregressiveLikelihood(tiny_model(family), chunk_tokens=64)
    long = ([1, 2, 3], [5] * 60)
    with torch.no_grad():
        together = likelihood.sequence_logps(collate([*TEXTS, long], CPU))
        alone = torch.stack([likelihood.sequence_logps(collate([text], CPU))[0] for text in TEXTS])
    torch.testing.assert_close(together[:-1], alone, atol=2e-5, rtol=0)


def test_the_prompt_does_not_count_and_the_end_of_the_text_counts_once() -> None:
    likelihood = AutoregressiveLikelihood(tiny_model(), chunk_tokens=64)
    batch = collate([([1, 2, 3], [4, 5, 2])], CPU)
    assert batch.targets.tolist() == [4, 5, 2]
    assert batch.positions.tolist() == [2, 3, 4]
    with torch.no_grad():
        assert likelihood.token_logps(batch).shape == (3,)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InputError, match="no tokens"):
        collate([([], [1, 2])], CPU)


def test_a_family_with_logits_of_its_own_making_is_refused() -> None:
    model = tiny_model()
    forward = model.forward

    def scaled(*args: object, **kwargs: object) -> object:
        out = forward(*args, **kwargs)
        out.logits = out.logits * 1.5
        return out

    model.forward = scaled
    with pytest.raises(InputError, match="not supported"):
        AutoregressiveLikelihood(model, 64)


def naive_measures(
    model: torch.nn.Module, reference: torch.nn.Module, prompt: list[int], answer: list[int]
) -> dict[str, torch.Tensor]:
    """Every measure from whole tensors of logits."""
    ids, start = torch.tensor([prompt + answer]), len(prompt) - 1
    policy, other = (m(input_ids=ids).logits[0, start:-1].float().log_softmax(-1) for m in (model, reference))
    targets = torch.tensor(answer)[:, None]
    logps, reference_logps = policy.gather(1, targets)[:, 0], other.gather(1, targets)[:, 0]
    return {
        "policy_logps": logps.sum(),
        "token_kl": (other.exp() * (other - policy)).sum(),
        "token_kl_products": ((logps - reference_logps).detach() * logps).sum(),
        "squared_probability_logs": (logps - (policy.exp() ** 2).sum(-1).log()).mean(),
        "mean_entropy": -(policy.exp() * policy).sum(-1).mean() / math.log(policy.shape[1]),
    }


STORIES = Path(__file__).parents[2].parent / "shared" / "models" / "stories260k"
NO_STORIES = pytest.mark.skipif(not STORIES.is_dir(), reason="the pretrained model of the shared folder is not here")


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("pretrained", [False, pytest.param(True, marks=NO_STORIES)])
def test_values_over_the_whole_vocabulary_equal_the_naive_ones_and_so_do_their_gradients(
    chunk: int, pretrained: bool
) -> None:
    model, reference = (
        AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32) if pretrained else tiny_model()
        for _ in range(2)
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():  # the output layer is frozen, and the same for both
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    likelihood, batch = AutoregressiveLikelihood(model, chunk), collate(TEXTS, CPU)
    with torch.no_grad():
        reference_hidden = AutoregressiveLikelihood(reference, chunk).hidden(batch)
    found = likelihood.measure(batch, frozenset(TOKEN_MEASURES), reference_hidden)
    whole = [naive_measures(model, reference, *text) for text in TEXTS]
    weight = model.model.layers[0].mlp.up_proj.weight
    for name, values in found.items():
        expected = torch.stack([row[name] for row in whole])
        torch.testing.assert_close(
            values, expected, atol=1e-6, rtol=5e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
        if name in ("policy_logps", "token_kl", "token_kl_products"):
            gradients = [torch.autograd.grad(v.sum(), weight, retain_graph=True)[0] for v in (values, expected)]
            torch.testing.assert_close(gradients[0], gradients[1], atol=2e-5, rtol=1e-4)
        else:
            assert not values.requires_grad


WITH_DROPOUT: dict[str, PreTrainedConfig] = {
    "opt": OPTConfig(
        vocab_size=64, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, dropout=0.5, attention_dropout=0.5, activation_dropout=0.5, layerdrop=0.5,
    ),
    "gpt-bigcode": GPTBigCodeConfig(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5
    ),
    "starcoder2": Starcoder2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, attention_dropout=0.5, residual_dropout=0.5, embedding_dropout=0.5,
    ),
}  # fmt: skip
"""Families that keep their dropout under other names than most, and apply it without a module."""


@pytest.mark.parametrize("family", WITH_DROPOUT)
def test_the_bases_own_dropout_is_off_while_an_adapter_is_trained(family: str) -> None:
    torch.manual_seed(7)
    base = AutoModelForCausalLM.from_config(WITH_DROPOUT[family], dtype=torch.float32)
    policy = Policy(base, AdapterConfig(rank=2, alpha=4), seed=0, name="tiny")
    batch = collate(TEXTS, CPU)
    with policy.evaluating():
        expected = policy.likelihood.token_logps(batch)
    policy.train(FIRST)
    assert policy.model.training
    for _ in range(3):
        torch.testing.assert_close(policy.likelihood.token_logps(batch).detach(), expected, atol=1e-6, rtol=0)


def test_an_adapters_own_dropout_stays_on() -> None:
    policy = Policy(tiny_model(), AdapterConfig(rank=2, alpha=4, dropout=0.5), seed=0, name="tiny")
    with torch.no_grad():
        for weight in policy.parameters.values():
            weight += 0.1
    batch = collate(TEXTS, CPU)
    first, second = (policy.likelihood.token_logps(batch).detach() for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-3)
