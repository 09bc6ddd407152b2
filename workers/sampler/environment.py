"""The process environment that vLLM reads when it is imported."""

from __future__ import annotations

import os
from pathlib import Path


def prepare(*, gpus: float, threads: int, cache_dir: Path | None) -> None:
    """Set what vLLM and its child processes need. Call it before vLLM is imported, in a process that belongs to the sampler."""
    settings = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if gpus == 0:
        # Ray sets OMP_NUM_THREADS from its CPU share; the sampler's own setting decides instead, without pinning to cores,
        # since several samplers share a machine and would all pin themselves to the same ones.
        settings["OMP_NUM_THREADS"] = str(threads)
        settings["MKL_NUM_THREADS"] = str(threads)
        settings["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        # With adapters vLLM runs the model without compilation here anyway; what is left is a helper of the log-probabilities, whose
        # compilation costs the first request seconds and needs a C++ compiler on the user's machine.
        settings["TORCH_COMPILE_DISABLE"] = "1"
    if cache_dir is not None:
        settings["VLLM_CACHE_ROOT"] = str(cache_dir / "vllm")
        settings["TRITON_CACHE_DIR"] = str(cache_dir / "triton")
        settings["TORCHINDUCTOR_CACHE_DIR"] = str(cache_dir / "inductor")
    os.environ.update(settings)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    # standard output belongs to a command's own result
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
