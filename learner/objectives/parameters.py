"""Parameter models of the objectives: what a job file may say under ``objective``.

Free of torch, so that a job file can be read and documented without it; the loss code of a kind is imported when it is built.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Reference = Literal["auto", "start", "round", "behaviour"]


class ObjectiveParameters(BaseModel):
    """What all objectives share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: Reference = Field(
        default="auto",
        description=(
            "Policy that the log-ratios are taken against: `start` (version 0), `round` (the policy at the round's start), "
            "`behaviour` (the version that wrote the answer). `auto` picks `round` for SPPO with `max_staleness: 0`, "
            "`behaviour` for SPPO otherwise, and `start` for the DPO family."
        ),
    )


class SppoParameters(ObjectiveParameters):
    """Self-play preference optimisation (arXiv 2405.00675, eq. 4.7): squared loss on the log-ratio to the previous policy."""

    kind: Literal["sppo"] = "sppo"
    beta: float = Field(
        default=0.001, gt=0, description="1 / eta. The paper's eta is 1000; small models want a much larger beta."
    )
    probabilities: Literal["paper", "released", "raw"] = Field(
        default="paper",
        description=(
            "How ordered logits become win probabilities: `paper` averages both orders; `released` uses the published code's "
            "differences of aggregated scores (twice as sharp, transitive by construction); `raw` uses one order."
        ),
    )
    estimate: Literal["soft", "pair", "hard"] = Field(
        default="soft",
        description="`soft`: each answer's mean over all K; `pair`: the pair's own probability; `hard`: 1 for the better answer.",
    )
    answers: Literal["extremes", "all"] = Field(
        default="extremes", description="Train on the best and worst answer, or on all K."
    )
    baseline: float = Field(
        default=0.5, ge=0, le=1, description="The constant that stands for the log-partition function."
    )
    reduction: Literal["mean", "sum"] = Field(default="mean", description="Over a prompt's answers.")


class DpoParameters(ObjectiveParameters):
    """Direct preference optimisation (arXiv 2305.18290, eq. 7), with label smoothing, its robust form and an NLL term."""

    kind: Literal["dpo"] = "dpo"
    beta: float = Field(default=0.1, gt=0, description="Strength of the pull towards the reference.")
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5, description="Assumed share of flipped preferences.")
    robust: bool = Field(
        default=False, description="Unbiased under flips (arXiv 2403.00409) instead of conservative DPO."
    )
    length_normalized: bool = Field(
        default=False, description="Divide each log-ratio by its answer's length in tokens."
    )
    nll_weight: float = Field(
        default=0.0, ge=0, description="Weight of the chosen answer's mean token NLL (arXiv 2404.19733)."
    )


AnyObjective = Annotated[SppoParameters | DpoParameters, Field(discriminator="kind")]
"""The discriminated union of all kinds."""
