"""What the scorer's files say against the job, without loading a weight (rule 15)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from services.jobs.model_files import read_json, safetensors_shapes
from workers.config import PairRMScorer, RewardModelScorer

KEY = "scorer.model.model"

_PAIRRM_WEIGHT = "pretrained_model.embeddings.word_embeddings.weight"


def problems(folder: Path, scorer: PairRMScorer | RewardModelScorer, with_weights: bool = True) -> Iterator[str]:
    """Why the folder cannot be the scorer's model.

    Args:
        with_weights: whether the folder should hold the weights (of a hub model, only the configuration is fetched here).
    """
    if not (folder / "config.json").is_file():
        yield f"{KEY}: {folder} has no config.json, so it is not a model in the transformers format"
        return
    config = read_json(folder / "config.json", KEY)
    tensors: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(safetensors_shapes(path, KEY))
    if with_weights and not tensors and not any(folder.glob("pytorch_model*.bin")):
        yield f"{KEY}: {folder} holds no weights"
    if isinstance(scorer, PairRMScorer):
        is_ranker = config.get("ranker_type") == "pairranker" or config.get("model_type") == "deberta-v2"
        if not is_ranker or (tensors and _PAIRRM_WEIGHT not in tensors):
            yield f"{KEY}: {folder} is not a PairRM; train one with `sparring scorer train`, or use kind: reward-model or function"
        return
    architecture = (config.get("architectures") or [""])[0]
    if not architecture.endswith("ForSequenceClassification"):
        yield f"{KEY}: {architecture or 'the model'} is not a sequence classifier; a reward model ends with one output"
        return
    outputs = len(config["id2label"]) if "id2label" in config else config.get("num_labels", 2)
    if outputs != 1:
        yield f"{KEY}: the classifier has {outputs} outputs; a reward model has one"
