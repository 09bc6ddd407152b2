"""Peak memory of TDPO's per-token KL and its gradient: whole tensors of logits against chunks of tokens computed again.

    .venv/bin/python benchmarks/token_kl_memory.py

Each way runs in a process of its own, and its peak resident memory less that before the pass is what counts; what is freed goes back to the
system at once (MALLOC_MMAP_THRESHOLD_), so that the peak is of memory in use. Values and gradients are compared, too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig

from learner.likelihood import AutoregressiveLikelihood, collate


def run(way: str, texts: int, tokens: int, vocabulary: int, chunk: int) -> dict[str, float]:
    """Sum of the KLs, norm of its gradient, and peak memory in MiB."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=vocabulary,
        max_position_embeddings=1024,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.lm_head.weight.requires_grad_(False)
    model.model.embed_tokens.weight.requires_grad_(False)
    ids = torch.randint(0, vocabulary, (texts, tokens + 1))
    batch = collate([(row[:1].tolist(), row[1:].tolist()) for row in ids], torch.device("cpu"))
    likelihood = AutoregressiveLikelihood(model, chunk)
    with torch.no_grad():
        reference = likelihood.hidden(batch)
        for weight in model.model.layers.parameters():
            weight += 0.02 * torch.randn_like(weight)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if way == "chunks":
        total = likelihood.measure(batch, frozenset({"token_kl"}), reference)["token_kl"].sum()
    else:
        with torch.no_grad():
            other = model.lm_head(reference).log_softmax(-1)
        policy = model(input_ids=batch.input_ids).logits[batch.rows, batch.positions].log_softmax(-1)
        total = (other.exp() * (other - policy)).sum()
    total.backward()  # type: ignore[no-untyped-call]
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"kl": total.item(), "gradient_norm": norm.item(), "mib": (peak - before) / 1024}


def main() -> None:
    """Run both ways and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--way", choices=["whole", "chunks"], help="run one way here, and print JSON")
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=64_000)
    parser.add_argument("--chunk", type=int, default=128)
    arguments = parser.parse_args()
    sizes = (arguments.texts, arguments.tokens, arguments.vocabulary, arguments.chunk)
    if arguments.way:
        print(json.dumps(run(arguments.way, *sizes)))
        return
    table = Table(title="{} texts of {} tokens, vocabulary {}, chunks of {} tokens".format(*sizes))
    for heading in ("way", "sum of KLs (nats)", "gradient norm", "peak (MiB)", "ratio"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    names = ("texts", "tokens", "vocabulary", "chunk")
    flags = [part for name, value in zip(names, sizes, strict=True) for part in (f"--{name}", str(value))]
    first: float | None = None
    for way in ("whole", "chunks"):
        done = subprocess.run(
            [sys.executable, __file__, "--way", way, *flags],
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
            capture_output=True,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout.strip().splitlines()[-1])
        first = first or found["mib"]
        table.add_row(
            way,
            f"{found['kl']:.6g}",
            f"{found['gradient_norm']:.6g}",
            f"{found['mib']:.0f}",
            f"{found['mib'] / first:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
