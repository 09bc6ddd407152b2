"""Configuration of the scorer's training, and what it reports. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from learner.config import Config
from learner.records import Record

Size = Literal["tiny", "small", "base"]


class TrainScorerConfig(Config):
    """How a PairRM is trained from preference pairs, from nothing or from an existing one."""

    start: str | None = Field(
        default=None,
        description="PairRM to fine-tune: a local folder or a hub name. None: a new model of the given size.",
    )
    size: Size = Field(default="tiny", description="Size of a new model: about 0.3, 6 or 100 million parameters.")
    tokenizer: str | None = Field(
        default=None,
        description="Folder with a tokenizer for a new model. None: a byte-level BPE is trained on the pairs.",
    )
    vocabulary: int | None = Field(
        default=None, ge=300, description="Tokens of that BPE. Default by size: 1024, 8192, 32768."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout of a new model.")
    steps: int = Field(default=1200, ge=1)
    batch_size: int = Field(default=32, ge=1, description="Pairs in a step.")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="Peak. Default: 1.5e-3 for a new tiny model, 5e-4 small, 1e-4 base, 1e-5 from a model.",
    )
    warmup_ratio: float = Field(
        default=0.06, ge=0, lt=1, description="Share of the steps in which the learning rate rises."
    )
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    held_out: float = Field(
        default=0.1, gt=0, lt=1, description="Share of the pairs that the model is tested on; split by prompt."
    )
    max_source_tokens: int = Field(default=1224, ge=8)
    max_total_tokens: int = Field(default=2048, ge=32)
    batch_tokens: int = Field(
        default=16384, ge=64, description="Token budget of one forward pass; larger steps are split."
    )
    strip_thinking: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(default=None, ge=1, description="torch threads. None: leave torch's setting.")
    seed: int = Field(default=0, ge=0, lt=1 << 31)


@dataclass(frozen=True)
class TrainProgress:
    """Where training stands: the stage, how much of it is done, and a smoothed loss in nats while training."""

    stage: Literal["tokenise", "train", "test"]
    done: int
    total: int
    loss: float | None = None


class CalibrationBin(Record):
    """Held-out pairs whose preferred answer is predicted better with a probability in ``[low, high)``.

    ``predicted`` is the mean of that probability, ``observed`` how often the labels agree.
    """

    low: float
    high: float
    pairs: int
    predicted: float | None
    observed: float | None


class ScorerReport(Record):
    """What a trained scorer is worth on pairs that it has not seen.

    Predictions use both orders: ``P(a beats b) = sigmoid((m_ab - m_ba) / 2)``.
    """

    training_pairs: int
    held_out_pairs: int
    held_out_ties: int = Field(description="Held-out pairs labelled one half; they do not count for the accuracy.")
    accuracy: float | None = Field(
        description="Share of the other held-out pairs whose better answer is preferred; ties one half."
    )
    accuracy_low: float | None = Field(description="Lower end of the 95 % Wilson interval.")
    accuracy_high: float | None
    log_loss: float = Field(description="Mean cross-entropy against the labels, in nats.")
    position_bias: float = Field(
        description="Mean |m_ab + m_ba| / 2: the part of the logit that only the order explains."
    )
    flip_share: float = Field(description="Share of pairs whose two orders prefer different answers.")
    calibration_error: float = Field(
        description="Expected calibration error: mean |predicted - observed| over the bins."
    )
    calibration: tuple[CalibrationBin, ...]
    truncated_share: float = Field(description="Share of held-out pairs in which a text had to be cut.")
    parameters: int
    steps: int
    final_loss: float = Field(description="Smoothed training loss at the end, in nats.")
    seconds: float = Field(description="Training time, without the test.")
    weights_sha256: str
