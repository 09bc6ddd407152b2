"""Parameter models of the objectives: what a job file may say under ``objective``.

Free of torch, so that a job file can be read and documented without it; the loss code of a kind is imported when it is
built.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Reference = Literal["auto", "start", "round", "behaviour", "slow"]
Answers = Literal["pair", "given-pair", "top-vs-rest", "all"]

USUAL_BETA = 0.1
"""Beta of the DPO family, per nat of log-probabilities that are summed over tokens."""


class ObjectiveParameters(BaseModel):
    """What all objectives share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    answers_of: ClassVar[Answers] = "pair"
    """What one training record holds: a pair, the better answer first; a pair in the order in which it was given; the best answer with
    all others; or all answers."""
    compares_with_reference: ClassVar[bool] = True
    """Whether log-ratios to a reference are read."""

    kind: str
    reference: Reference = Field(
        default="auto",
        description=(
            "Policy that the log-ratios are taken against: `start` (version 0), `round` (the policy at the round's start), "
            "`behaviour` (the version that wrote the answer), `slow` (the slow adapter as it stands). `auto` picks `round` for SPPO with `max_staleness: 0`, "
            "`behaviour` for SPPO otherwise, and `start` for the DPO family."
        ),
    )

    @property
    def record(self) -> Answers:
        """What one training record holds, for these parameters."""
        return self.answers_of

    @property
    def uses_reference(self) -> bool:
        """Whether log-ratios to a reference are read, for these parameters."""
        return self.compares_with_reference

    @property
    def core(self) -> ObjectiveParameters:
        """The objective itself, without the wrappers round it."""
        return self

    @property
    def summed_beta(self) -> float:
        """What scales log-ratios that are summed over tokens: `beta`, or 0.1 where that scales means over tokens or there is none."""
        if getattr(self, "length_normalized", False):
            return USUAL_BETA
        return float(getattr(self, "beta", USUAL_BETA))


def _beta(default: float, description: str = "Strength of the pull towards the reference.") -> Any:
    return Field(default=default, gt=0, description=description)


_LENGTH_NORMALIZED = "Divide each log-ratio by its answer's length in tokens."


class SppoParameters(ObjectiveParameters):
    """Self-play preference optimisation (arXiv 2405.00675, eq. 4.7): squared loss on the log-ratio to the previous policy."""

    kind: Literal["sppo"] = "sppo"
    beta: float = _beta(0.001, "1 / eta. The paper's eta is 1000; small models want a much larger beta.")
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

    @property
    def record(self) -> Answers:
        """All answers, or the extremes."""
        return "all" if self.answers == "all" else "pair"


class DpoParameters(ObjectiveParameters):
    """Direct preference optimisation (arXiv 2305.18290, eq. 7), with label smoothing, its robust form and an NLL term."""

    kind: Literal["dpo"] = "dpo"
    beta: float = _beta(0.1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5, description="Assumed share of flipped preferences.")
    robust: bool = Field(
        default=False, description="Unbiased under flips (arXiv 2403.00409) instead of conservative DPO."
    )
    length_normalized: bool = Field(default=False, description=_LENGTH_NORMALIZED)
    nll_weight: float = Field(
        default=0.0, ge=0, description="Weight of the chosen answer's mean token NLL (arXiv 2404.19733)."
    )


class IpoParameters(ObjectiveParameters):
    """Identity preference optimisation (arXiv 2310.12036, eq. 17): squared distance of the margin to 1 / (2 tau)."""

    kind: Literal["ipo"] = "ipo"
    tau: float = Field(default=0.1, gt=0, description="The margin's target is 1 / (2 tau).")
    length_normalized: bool = Field(
        default=False,
        description=_LENGTH_NORMALIZED + " The paper sums; popular trainers average, and then want a larger tau.",
    )

    @property
    def summed_beta(self) -> float:
        """`tau`, or 0.1 where that scales means over tokens."""
        return USUAL_BETA if self.length_normalized else self.tau


class HingeParameters(ObjectiveParameters):
    """Hinge loss on the margin (SLiC, arXiv 2305.10425; normalised by a reference as in RSO, arXiv 2309.06657)."""

    kind: Literal["hinge"] = "hinge"
    beta: float = _beta(0.1, "1 / beta is the margin in nats beyond which nothing is learned.")


class KtoPairParameters(ObjectiveParameters):
    """KTO on pairs (arXiv 2402.01306): each answer against the batch's mean log-ratio of the other side."""

    kind: Literal["kto-pair"] = "kto-pair"
    beta: float = _beta(0.1)
    detach_kl: bool = Field(
        default=True,
        description="Keep the batch's mean log-ratios out of the gradient, as the paper has it. SPPO's published code does not.",
    )


class SimpoParameters(ObjectiveParameters):
    """SimPO (arXiv 2405.14734, eq. 6): length-normalised log-probabilities with a target margin, and no reference."""

    compares_with_reference: ClassVar[bool] = False

    kind: Literal["simpo"] = "simpo"
    beta: float = _beta(2.0, "Scale of the mean token log-probabilities.")
    gamma_beta_ratio: float = Field(
        default=0.25, ge=0, description="Target margin gamma over beta, in nats a token. Trainers elsewhere take gamma."
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5, description="Assumed share of flipped preferences.")
    nll_weight: float = Field(default=0.0, ge=0, description="Weight of the chosen answer's mean token NLL.")

    @property
    def summed_beta(self) -> float:
        """0.1, since beta scales means over tokens."""
        return USUAL_BETA


class AlphaDpoParameters(ObjectiveParameters):
    """AlphaDPO (arXiv 2410.10148): SimPO whose target margin follows how far the pair's margin is from the reference's."""

    kind: Literal["alpha-dpo"] = "alpha-dpo"
    beta: float = _beta(2.5, "Scale of the mean token log-probabilities.")
    gamma_beta_ratio: float = Field(default=0.25, ge=0, description="Target margin over beta.")
    alpha: float = Field(default=0.05, ge=0, description="Weight of the standardised gap in the target margin.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Of the running mean and deviation of the gap.")
    length_normalized: bool = Field(default=True, description="Means over tokens instead of sums.")


class RDpoParameters(ObjectiveParameters):
    """R-DPO (arXiv 2403.19159): DPO with a penalty on the difference of lengths."""

    kind: Literal["r-dpo"] = "r-dpo"
    beta: float = _beta(0.1)
    alpha: float = Field(default=0.01, ge=0, description="Logits a token that the chosen answer is longer.")


class OdpoParameters(ObjectiveParameters):
    """DPO with an offset (arXiv 2402.10571): the margin must exceed one that grows with the scorer's gap."""

    kind: Literal["odpo"] = "odpo"
    beta: float = _beta(0.1)
    alpha: float = Field(default=1.0, ge=0, description="Weight of the offset, outside beta.")
    offset: Literal["identity", "log1p", "log"] = Field(
        default="log",
        description=(
            "Of the scorer's gap: `log` is the paper's, for scores on a positive scale, and negative below a gap of 1; "
            "`identity` is natural for PairRM's logit; `log1p` is a variant that is never negative."
        ),
    )


class MallowsParameters(ObjectiveParameters):
    """MallowsPO (arXiv 2405.14953): prompts on which the reference is sure count for more."""

    kind: Literal["mallows"] = "mallows"
    beta: float = _beta(0.1)
    form: Literal["theta", "phi", "ipo"] = Field(
        default="theta",
        description="`theta`: sigmoid link scaled by the dispersion; `phi`: Kendall's link; `ipo`: squared.",
    )
    neg_log_dispersion_mean: float = Field(
        default=0.29, gt=0, description="Scale phi* that brings the mean of -log dispersion near 1."
    )


class SDpoParameters(ObjectiveParameters):
    """Softmax-DPO (arXiv 2406.09215): the best answer against all others at once."""

    answers_of: ClassVar[Answers] = "top-vs-rest"

    kind: Literal["s-dpo"] = "s-dpo"
    beta: float = _beta(1.0)


class TdpoParameters(ObjectiveParameters):
    """Token-level DPO (arXiv 2404.11999): the margin minus a difference of sequential KL divergences."""

    kind: Literal["tdpo"] = "tdpo"
    beta: float = _beta(0.1)
    version: Literal[1, 2] = Field(default=2, description="2 keeps the chosen answer's KL out of the gradient.")
    alpha: float = Field(default=0.5, ge=0, description="Weight of the KL difference in version 2.")


class FDpoParameters(ObjectiveParameters):
    """f-DPO (arXiv 2309.16240): DPO whose constraint is another f-divergence."""

    kind: Literal["f-dpo"] = "f-dpo"
    beta: float = _beta(0.1)
    divergence: Literal["reverse-kl", "forward-kl", "js", "alpha"] = Field(
        default="reverse-kl", description="`reverse-kl` is DPO itself."
    )
    alpha: float = Field(
        default=0.5, gt=0, lt=1, description="Of the alpha divergence: towards 0 reverse KL, towards 1 forward KL."
    )
    alpha_convention: Literal["paper", "complement"] = Field(
        default="paper", description="`complement`: alpha is 1 minus the paper's, as in some trainers."
    )


class ExoParameters(ObjectiveParameters):
    """EXO on pairs (arXiv 2402.00856): reverse KL between the policy's and the smoothed preference."""

    kind: Literal["exo"] = "exo"
    beta: float = _beta(0.1)
    label_smoothing: float = Field(default=0.001, gt=0, lt=0.5, description="Keeps the preference off 0 and 1.")


class ApoZeroParameters(ObjectiveParameters):
    """APO-zero (arXiv 2408.06266): raise the chosen answer and lower the rejected one, each on its own."""

    kind: Literal["apo-zero"] = "apo-zero"
    beta: float = _beta(0.1)


class ApoDownParameters(ObjectiveParameters):
    """APO-down (arXiv 2408.06266): lower both, the rejected answer more; for policies better than their data."""

    kind: Literal["apo-down"] = "apo-down"
    beta: float = _beta(0.1)


class NcaParameters(ObjectiveParameters):
    """Noise contrastive alignment on pairs (arXiv 2402.05369): keeps the chosen answer's likelihood from falling."""

    kind: Literal["nca"] = "nca"
    beta: float = _beta(0.1)


class BcoParameters(ObjectiveParameters):
    """Binary classifier optimisation (arXiv 2404.04656): each answer's reward against a running mean reward."""

    kind: Literal["bco"] = "bco"
    beta: float = _beta(0.1)
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Of the running mean reward.")


class XpoParameters(ObjectiveParameters):
    """Exploratory preference optimisation (arXiv 2405.21046): DPO with a bonus for leaving what the reference writes."""

    kind: Literal["xpo"] = "xpo"
    beta: float = _beta(0.1)
    alpha: float = Field(
        default=5e-6, ge=0, description="Weight of the log-probability of the answer that the reference wrote."
    )


class NashMdParameters(ObjectiveParameters):
    """Nash-MD (arXiv 2312.00886): policy gradient against a mixture of the policy and its reference; offline only."""

    answers_of: ClassVar[Answers] = "given-pair"

    kind: Literal["nash-md"] = "nash-md"
    beta: float = _beta(0.1)
    mixture: float = Field(
        default=0.5, ge=0, le=1, description="Share of the reference in the mixture that wrote the second answer."
    )


PairwiseWithBeta = (
    DpoParameters
    | HingeParameters
    | SimpoParameters
    | RDpoParameters
    | OdpoParameters
    | MallowsParameters
    | TdpoParameters
    | FDpoParameters
    | ExoParameters
    | ApoZeroParameters
    | ApoDownParameters
    | NcaParameters
)
"""Pairwise kinds that need nothing beside their own pair, which the wrappers can therefore go round."""

Pairwise = PairwiseWithBeta | IpoParameters


class WrapperParameters(ObjectiveParameters):
    """What wrappers share: the objective inside them says what a record is and what is compared."""

    inner: ObjectiveParameters = Field(default_factory=DpoParameters, description="The pairwise objective inside.")

    @model_validator(mode="after")
    def _one_reference(self) -> WrapperParameters:
        if self.inner.reference != "auto":
            raise ValueError(
                f"inner.reference: {self.inner.reference} belongs beside `inner`; write reference: "
                f"{self.inner.reference} there"
            )
        return self

    @property
    def uses_reference(self) -> bool:
        """As the objective inside."""
        return self.inner.uses_reference

    @property
    def core(self) -> ObjectiveParameters:
        """The objective inside, without wrappers."""
        return self.inner.core

    @property
    def summed_beta(self) -> float:
        """As the objective inside."""
        return self.inner.summed_beta


class BetaDpoParameters(WrapperParameters):
    """beta-DPO (arXiv 2407.08639): beta follows the batch's mean margin, and outlying pairs are left out at random."""

    kind: Literal["beta-dpo"] = "beta-dpo"
    inner: PairwiseWithBeta = Field(
        default_factory=DpoParameters,
        discriminator="kind",
        description="The pairwise objective inside; its beta is the one that moves.",
    )
    alpha: float = Field(default=0.6, ge=0, description="How far beta follows the mean margin.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Of the running mean and deviation of the margin.")
    filter_share: float = Field(default=0.2, ge=0, lt=1, description="Share of a batch's pairs that is left out.")
    bias_correction: bool = Field(
        default=False, description="Divide the running statistics by 1 - momentum^steps; the published code does not."
    )


class DrDpoParameters(WrapperParameters):
    """Distributionally robust DPO (arXiv 2407.07880): log-mean-exp over the batch, which plays down suspicious pairs."""

    kind: Literal["dr-dpo"] = "dr-dpo"
    inner: Pairwise = Field(
        default_factory=DpoParameters, discriminator="kind", description="The pairwise objective inside."
    )
    beta_prime: float = Field(
        default=1.0, gt=0, description="Temperature of the weights: large is the plain mean, small the best pair alone."
    )


class WpoParameters(WrapperParameters):
    """WPO (arXiv 2406.11827): pairs weighted by how likely the policy itself would write them."""

    kind: Literal["wpo"] = "wpo"
    inner: Pairwise = Field(
        default_factory=DpoParameters, discriminator="kind", description="The pairwise objective inside."
    )
    clamp: bool = Field(default=True, description="Weights at most 1, as published; some trainers leave that out.")


class ChaseParameters(WrapperParameters):
    """Fast and slow chasing of OFS-DPO (arXiv 2406.05534): each module's loss has a term in the other's margin."""

    kind: Literal["chase"] = "chase"
    inner: Pairwise | BetaDpoParameters | DrDpoParameters | WpoParameters = Field(
        default_factory=DpoParameters,
        discriminator="kind",
        description="The pairwise objective of both modules, wrapped or not.",
    )
    alpha: float = Field(default=0.1, ge=0, lt=1, description="Weight of the chasing term.")
    margin_clamp: float = Field(default=10.0, gt=0, description="Bound on beta times the margin between the modules.")
    slow_term: Literal["reported", "bounded"] = Field(
        default="bounded", description="`reported` is minus the fast module's term, which has no lower bound."
    )


BUILT_IN: tuple[type[ObjectiveParameters], ...] = (
    SppoParameters,
    DpoParameters,
    IpoParameters,
    HingeParameters,
    KtoPairParameters,
    SimpoParameters,
    AlphaDpoParameters,
    RDpoParameters,
    OdpoParameters,
    MallowsParameters,
    SDpoParameters,
    TdpoParameters,
    FDpoParameters,
    ExoParameters,
    ApoZeroParameters,
    ApoDownParameters,
    NcaParameters,
    BcoParameters,
    XpoParameters,
    NashMdParameters,
    BetaDpoParameters,
    DrDpoParameters,
    WpoParameters,
    ChaseParameters,
)
