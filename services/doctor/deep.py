"""Whether the engines can be imported and see their devices. Each in a process of its own, since a broken one may take it down."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

from services.doctor.findings import Finding, Status

IMPORT_SECONDS = 180.0

PROBES = {
    "torch": "import torch; n = torch.cuda.device_count(); print(torch.__version__, f'with {n} GPUs' if n else 'on the CPU')",
    "transformers": "import transformers; from transformers import AutoModelForCausalLM; print(transformers.__version__)",
    "vLLM": "import vllm; from vllm.v1.engine.async_llm import AsyncLLM; print(vllm.__version__)",
    "llm-blender": "from workers.scorers import pairrm_shim; print('its PairRM can be built')",
}


def check_imports(host: str) -> Iterator[Finding]:
    """Import each engine; takes up to a minute."""
    for name, script in PROBES.items():
        yield check_import(host, name, script)


def check_import(host: str, name: str, script: str) -> Finding:
    """Run one probe, and tell its last line."""
    began = time.monotonic()
    advice = "read the line, and run make to have the lock's versions"
    try:
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=IMPORT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        found = f"it was not imported within {IMPORT_SECONDS:g} s"
        return Finding(host=host, subject=name, status=Status.PROBLEM, found=found, advice=advice)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    said = lines[-1] if lines else f"it ended with code {done.returncode}"
    if done.returncode:
        return Finding(host=host, subject=name, status=Status.PROBLEM, found=said, advice=advice)
    return Finding(
        host=host, subject=name, status=Status.OK, found=f"{said}, imported in {time.monotonic() - began:.1f} s"
    )
