"""What runs inside vLLM's worker process: loading an adapter from bytes, and saying which bytes they were (rule 4).

vLLM mixes this class into its worker (``worker_extension_cls``), and ``collective_rpc`` calls it. The worker hashes the bytes that it was
handed, writes exactly these to a folder that only it can read, lets vLLM load them, and deletes the folder. No path that anyone else
knows is ever read, so nothing can be swapped in between, and an evicted adapter cannot be read again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from learner.digests import adapter_digest
from learner.records import ADAPTER_FILES

SHARED_MEMORY = "/dev/shm"


class AdapterLoader:
    """Mixed into vLLM's worker. Every rank of a tensor-parallel engine runs it on the same bytes."""

    def sparring_prepare(self) -> int:
        """Make the worker ready for adapters, once, after it has started; returns its process id."""
        from vllm.platforms import current_platform

        if current_platform.is_cpu():
            from workers.sampler.cpu_kernels import install

            install()
        return os.getpid()

    def sparring_load_adapter(
        self, name: str, lora_id: int, expected_digest: str, files: Mapping[str, bytes]
    ) -> dict[str, str]:
        """Load an adapter from its files' bytes.

        Returns:
            ``digest``: of the bytes that were read; and ``error``: why they were not loaded, empty when they were.
            Bytes with another digest than the expected one are never loaded.
        """
        digest = adapter_digest(files)
        if digest != expected_digest:
            return {"digest": digest, "error": "digest"}
        return {"digest": digest, "error": self._sparring_load(name, lora_id, files)}

    def _sparring_load(self, name: str, lora_id: int, files: Mapping[str, bytes]) -> str:
        from vllm.lora.request import LoRARequest

        worker: Any = self
        size = sum(len(files[file]) for file in ADAPTER_FILES)
        with tempfile.TemporaryDirectory(prefix="sparring-adapter-", dir=_roomy_folder(size)) as folder:
            for file in ADAPTER_FILES:
                (Path(folder) / file).write_bytes(files[file])
            try:
                worker.add_lora(LoRARequest(lora_name=name, lora_int_id=lora_id, lora_path=folder))
            except Exception as error:  # vLLM raises many kinds; all of them mean that the adapter is not served
                return str(error).replace(folder, name)
        stray = self._sparring_unused_modules(lora_id)
        if stray:
            # vLLM serves the bare base without a word for weights that match none of its modules
            worker.remove_lora(lora_id)
            return f"its weights name modules that the model does not have: {', '.join(stray[:5])}"
        return ""

    def _sparring_unused_modules(self, lora_id: int) -> list[str]:
        manager = self.model_runner.lora_manager._adapter_manager  # type: ignore[attr-defined]
        adapter = manager.get_adapter(lora_id)
        return sorted(set(adapter.loras) - set(manager.modules))


def _roomy_folder(size: int) -> str | None:
    """Shared memory when it has room (containers often give it 64 MB), else the system's temporary folder."""
    if os.access(SHARED_MEMORY, os.W_OK) and shutil.disk_usage(SHARED_MEMORY).free > 2 * size + (1 << 20):
        return SHARED_MEMORY
    return None
