"""The only place that imports llm-blender (rule 17).

llm-blender 0.0.2 imports a name that transformers 5 has dropped; it is put back before the import. Only the model class is used:
llm-blender's tokenising and batching call functions that transformers 5 has dropped too, and are ours (``pairrm_tokens``).
"""

from __future__ import annotations

import transformers.utils.hub as _hub

if not hasattr(_hub, "TRANSFORMERS_CACHE"):
    from huggingface_hub.constants import HF_HUB_CACHE

    _hub.TRANSFORMERS_CACHE = HF_HUB_CACHE

from llm_blender.pair_ranker.pairrm import DebertaV2PairRM

__all__ = ["DebertaV2PairRM"]
