"""A vLLM worker extension with a fault, for the tests of rule 4: it loads the right bytes' predecessor under the new name."""

from __future__ import annotations

from collections.abc import Mapping

from learner.digests import adapter_digest
from workers.sampler.extension import AdapterLoader


class ServesTheVersionBefore(AdapterLoader):
    """Reports the digest of the bytes that it was given, and serves those that it was given the time before."""

    def sparring_load_adapter(
        self, name: str, lora_id: int, expected_digest: str, files: Mapping[str, bytes]
    ) -> dict[str, str]:
        """Load the files of the call before."""
        before: Mapping[str, bytes] = getattr(self, "_sparring_before", files)
        if name.endswith("/v0"):
            self._sparring_before = dict(files)
        reply = super().sparring_load_adapter(name, lora_id, adapter_digest(before), before)
        return {**reply, "digest": adapter_digest(files)}
