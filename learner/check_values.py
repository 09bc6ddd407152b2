"""Published and hand-derived values that the objectives must reproduce; `sparring objectives --check` prints them all.

The base example has log-probabilities -10 and -12 under the policy and -11 and -11.5 under the reference, so that the
log-ratios are 1 and -0.5. Every value holds to 1e-9 in float64 and 1e-5 in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learner import did
from learner.objectives.batch import PreferenceBatch
from learner.objectives.registry import build_objective
from learner.objectives.wrappers import BetaDpo, Chase
from learner.preference import win_matrix, win_probabilities

EXACT, SINGLE = 1e-9, 1e-5
"""Allowed error in float64 and in float32: absolute, and relative above 1."""

Compute = Callable[[torch.dtype], Tensor]


@dataclass(frozen=True)
class CheckValue:
    """One row: what is computed, and what must come out."""

    name: str
    expected: tuple[float, ...]
    compute: Compute

    def error(self, dtype: torch.dtype) -> float:
        """Largest deviation, relative where the expected value is above 1."""
        found = self.compute(dtype).detach().double().reshape(-1)
        wanted = torch.tensor(self.expected, dtype=torch.float64)
        if found.shape != wanted.shape:
            return math.inf
        return float(((found - wanted).abs() / wanted.abs().clamp(min=1)).max())

    def passes(self) -> bool:
        """Whether it holds in both precisions."""
        return self.error(torch.float64) <= EXACT and self.error(torch.float32) <= SINGLE


BASE: Mapping[str, float] = {
    "chosen_logps": -10,
    "rejected_logps": -12,
    "reference_chosen_logps": -11,
    "reference_rejected_logps": -11.5,
    "chosen_lengths": 5,
    "rejected_lengths": 4,
    "chosen_win_probability": 0.7,
    "rejected_win_probability": 0.35,
    "pair_logit": math.log(4),
}


def pairs(dtype: torch.dtype, **changes: float | Sequence[float]) -> PreferenceBatch:
    """The base example with changes, as a batch of one pair, or of as many as a change has values."""
    values: dict[str, float | Sequence[float]] = {**BASE, **changes}
    count = max(len(value) if isinstance(value, Sequence) else 1 for value in values.values())
    columns = {
        name: torch.tensor(value if isinstance(value, Sequence) else [value] * count, dtype=dtype)
        for name, value in values.items()
    }
    return PreferenceBatch.from_pairs(**columns)


def _loss(parameters: Mapping[str, Any], state: Mapping[str, Any] | None = None, **changes: Any) -> Compute:
    def compute(dtype: torch.dtype) -> Tensor:
        objective = build_objective(parameters)
        if state is not None:
            objective.load_state_dict(state)
            objective.eval()
        return objective(pairs(dtype, **changes)).loss

    return compute


def _metric(parameters: Mapping[str, Any], *names: str) -> Compute:
    def compute(dtype: torch.dtype) -> Tensor:
        metrics = build_objective(parameters)(pairs(dtype)).metrics
        return torch.stack([metrics[name] for name in names])

    return compute


def _row(name: str, expected: float | Sequence[float], parameters: Mapping[str, Any], **changes: Any) -> CheckValue:
    values = tuple(expected) if isinstance(expected, Sequence) else (expected,)
    return CheckValue(name, values, _loss(parameters, **changes))


def _softmax_dpo(dtype: torch.dtype) -> Tensor:
    logps = torch.tensor([[1.0, -0.5, 0.2]], dtype=dtype)
    batch = PreferenceBatch(logps, reference_logps=torch.zeros_like(logps))
    return build_objective({"kind": "s-dpo"})(batch).loss


TDPO_TOKENS = {
    "chosen_logps": math.log(0.6),
    "rejected_logps": math.log(0.2),
    "reference_chosen_logps": math.log(0.5),
    "reference_rejected_logps": math.log(0.4),
}


def _token_kl(reference: Sequence[float], policy: Sequence[float]) -> float:
    return math.fsum(r * (math.log(r) - math.log(p)) for r, p in zip(reference, policy, strict=True))


TDPO_KL = {
    "chosen_token_kl": _token_kl((0.5, 0.3, 0.2), (0.6, 0.3, 0.1)),
    "rejected_token_kl": _token_kl((0.4, 0.4, 0.2), (0.2, 0.5, 0.3)),
}

BETA_MARGINS = (1.5, 0.5, -0.5, 2.5)


def _beta_dpo(alpha: float = 0.6) -> tuple[BetaDpo, dict[str, Any]]:
    objective = build_objective({"kind": "beta-dpo", "alpha": alpha})
    assert isinstance(objective, BetaDpo)
    state = {"mean": 1.0, "deviation": 1.2, "steps": 1}
    objective.load_state_dict(state)
    return objective, state


def _keep_weights(dtype: torch.dtype) -> Tensor:
    return _beta_dpo()[0].keep_weights(torch.tensor(BETA_MARGINS, dtype=dtype))


def _beta_after_draw(dtype: torch.dtype) -> Tensor:
    """The batch's beta and mean loss when 1.5, 0.5 and 2.5 were drawn."""
    objective, _ = _beta_dpo()
    objective.eval()
    drawn = [margin for margin in BETA_MARGINS if margin != -0.5]
    flat = [0.0] * len(drawn)
    batch = pairs(
        dtype,
        chosen_logps=drawn,
        rejected_logps=flat,
        reference_chosen_logps=flat,
        reference_rejected_logps=flat,
    )
    out = objective(batch)
    return torch.stack([out.metrics["beta"], out.loss])


def _first_moments(dtype: torch.dtype) -> Tensor:
    objective = build_objective({"kind": "beta-dpo"})
    objective.prepare(torch.tensor(BETA_MARGINS, dtype=dtype))
    state = objective.state_dict()
    return torch.tensor([state["mean"], state["deviation"]], dtype=dtype)


def _robust(beta_prime: float) -> Compute:
    def compute(dtype: torch.dtype) -> Tensor:
        """Losses .2, .6 and 1, as hinge losses of margins .8, .4 and 0 at beta 1."""
        inner = {"kind": "hinge", "beta": 1.0}
        objective = build_objective({"kind": "dr-dpo", "beta_prime": beta_prime, "inner": inner})
        batch = pairs(
            dtype,
            chosen_logps=[0.8, 0.4, 0.0],
            rejected_logps=0.0,
            reference_chosen_logps=0.0,
            reference_rejected_logps=0.0,
        )
        return objective(batch).loss

    return compute


def _chase(role: str, slow_term: str = "bounded") -> Compute:
    def compute(dtype: torch.dtype) -> Tensor:
        objective = build_objective({"kind": "chase", "alpha": 0.5, "slow_term": slow_term})
        assert isinstance(objective, Chase)
        fast, slow = (-10.0, -12.0), (-10.5, -11.8)
        own, other = (fast, slow) if role == "fast" else (slow, fast)
        objective.role = "fast" if role == "fast" else "slow"
        batch = pairs(
            dtype,
            chosen_logps=own[0],
            rejected_logps=own[1],
            other_chosen_logps=other[0],
            other_rejected_logps=other[1],
        )
        return objective(batch).loss

    return compute


def _kendall_marginals(dtype: torch.dtype) -> Tensor:
    """Rank gaps 1, 2 and 3 at phi = 1/2, which brute force over permutations of four items gives."""
    from learner.objectives.mallows import kendall_log_link

    return kendall_log_link(torch.tensor([1.0, 2.0, 3.0], dtype=dtype), torch.full((3,), 0.5, dtype=dtype)).exp()


PAIRRM_LOGITS = ((0.0, 1.0, 2.0), (-0.8, 0.0, 0.5), (-1.6, -0.3, 0.0))


def _win_probabilities(how: str) -> Compute:
    def compute(dtype: torch.dtype) -> Tensor:
        logits = torch.tensor(PAIRRM_LOGITS, dtype=dtype).numpy()
        return torch.as_tensor(win_probabilities(win_matrix(logits, probabilities=how)))  # type: ignore[arg-type]

    return compute


def _released_from_scores(dtype: torch.dtype) -> Tensor:
    """Scores 1, .5, 0, -.5, -1, which are half of them as Bradley-Terry rewards."""
    rewards = torch.tensor([1, 0.5, 0, -0.5, -1], dtype=dtype) / 2
    logits = (rewards[:, None] - rewards[None, :]).numpy()
    return torch.as_tensor(win_probabilities(win_matrix(logits, probabilities="released")))


def _did(dtype: torch.dtype) -> Tensor:
    policy = torch.tensor([0.6, 0.3, 0.1], dtype=dtype).log()
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=dtype).log()
    weights = did.rejected_log_weights(policy, reference, beta=0.5)
    return torch.cat(
        [
            did.information_distribution(policy, reference),
            did.information_entropy(policy, reference)[None],
            torch.softmax(reference + weights, dim=0),
        ]
    )


ALPHA_STATE = {"mean": 0.1, "deviation": 0.2, "steps": 1}
ALPHA = {"kind": "alpha-dpo", "gamma_beta_ratio": 0.6, "alpha": 0.2, "beta": 2.5, "length_normalized": False}
AGREEING = {"chosen_logps": -11.0, "rejected_logps": -11.5}

CHECK_VALUES: tuple[CheckValue, ...] = (
    # SPPO
    _row("sppo", 30975.625, {"kind": "sppo"}),
    _row("sppo, beta .1", 1.0, {"kind": "sppo", "beta": 0.1}),
    _row("sppo, pair", 89550.625, {"kind": "sppo", "estimate": "pair"}),
    _row("sppo, pair, beta .1", 5.125, {"kind": "sppo", "estimate": "pair", "beta": 0.1}),
    _row("sppo, hard, sum, beta .1", 36.25, {"kind": "sppo", "estimate": "hard", "reduction": "sum", "beta": 0.1}),
    _row("sppo, hard, sum", 498501.25, {"kind": "sppo", "estimate": "hard", "reduction": "sum"}),
    CheckValue(
        "sppo, released probabilities from scores",
        (0.7103778927969849, 0.6097266109859767, 0.5, 0.3902733890140233, 0.2896221072030151),
        _released_from_scores,
    ),
    CheckValue(
        "win probabilities, released", (0.7857894824, 0.4541174972, 0.2600930205), _win_probabilities("released")
    ),
    CheckValue("win probabilities, paper", (0.6896994792, 0.4625793858, 0.3477211349), _win_probabilities("paper")),
    CheckValue("win probabilities, raw", (0.7039518855, 0.4774949500, 0.3645130327), _win_probabilities("raw")),
    # DPO
    _row("dpo", 0.6209570478, {"kind": "dpo"}),
    _row("dpo, label smoothing .1", 0.6359570478, {"kind": "dpo", "label_smoothing": 0.1}),
    _row("dpo, robust .1", 0.6022070478, {"kind": "dpo", "label_smoothing": 0.1, "robust": True}),
    _row("dpo, length normalised", 0.6770292060, {"kind": "dpo", "length_normalized": True}),
    _row("dpo, NLL weight 1", 2.6209570478, {"kind": "dpo", "nll_weight": 1.0}),
    _row("dpo at the reference", math.log(2), {"kind": "dpo"}, **AGREEING),
    _row("r-dpo", 0.6163437730, {"kind": "r-dpo"}),
    _row("odpo, gap 3", 1.2759559008, {"kind": "odpo"}, pair_logit=3.0),
    _row("odpo, gap 3, alpha .5", 0.9125999074, {"kind": "odpo", "alpha": 0.5}, pair_logit=3.0),
    _row("xpo, alpha 1e-5", 0.6208370478, {"kind": "xpo", "alpha": 1e-5}),
    _row("ipo", 12.25, {"kind": "ipo"}),
    _row(
        "ipo, length normalised, lengths 5 and 6",
        22.2469444444,
        {"kind": "ipo", "length_normalized": True},
        rejected_lengths=6,
    ),
    _row("ipo at the reference", 25.0, {"kind": "ipo"}, **AGREEING),
    _row("hinge", 0.85, {"kind": "hinge"}),
    _row("hinge at the reference", 1.0, {"kind": "hinge"}, **AGREEING),
    # single answers
    CheckValue(
        "kto-pair, both halves",
        (0.4750208125, 0.4625701547),
        _metric({"kind": "kto-pair"}, "chosen_loss", "rejected_loss"),
    ),
    _row("kto-pair", (0.4750208125 + 0.4625701547) / 2, {"kind": "kto-pair"}),
    _row("apo-zero", 0.9625234160, {"kind": "apo-zero"}),
    _row("apo-down", 0.9875493421, {"kind": "apo-down"}),
    _row("nca", 1.3508248141, {"kind": "nca"}),
    _row("bco, mean reward 0", 1.3128563081, {"kind": "bco"}),
    # mean token log-probabilities
    _row("simpo, ratio .5", 0.3132616875, {"kind": "simpo", "gamma_beta_ratio": 0.5}),
    CheckValue(
        "alpha-dpo",
        (0.5759394199,),
        _loss(
            ALPHA,
            ALPHA_STATE,
            chosen_logps=1.0,
            rejected_logps=0.0,
            reference_chosen_logps=0.6,
            reference_rejected_logps=0.0,
        ),
    ),
    # divergences
    _row("f-dpo, reverse KL", 0.6209570478, {"kind": "f-dpo"}),
    _row("f-dpo, forward KL", 0.6311543836, {"kind": "f-dpo", "divergence": "forward-kl"}),
    _row("f-dpo, JS", 0.6606521625, {"kind": "f-dpo", "divergence": "js"}),
    _row("f-dpo, alpha .3", 0.6254376939, {"kind": "f-dpo", "divergence": "alpha", "alpha": 0.3}),
    _row("f-dpo, alpha .5", 0.6276909471, {"kind": "f-dpo", "divergence": "alpha", "alpha": 0.5}),
    _row("f-dpo, alpha .7", 0.6294248733, {"kind": "f-dpo", "divergence": "alpha", "alpha": 0.7}),
    CheckValue(
        "tdpo, both KLs",
        (0.0474686577, 0.1069084301),
        lambda dtype: torch.tensor(list(TDPO_KL.values()), dtype=dtype),
    ),
    _row("dpo on tdpo's example", 0.6503314948, {"kind": "dpo"}, **TDPO_TOKENS),
    _row("tdpo, version 1", 0.6531778806, {"kind": "tdpo", "version": 1}, **TDPO_TOKENS, **TDPO_KL),
    _row("tdpo, version 2", 0.6517535855, {"kind": "tdpo"}, **TDPO_TOKENS, **TDPO_KL),
    _row("exo", 2.5055165555, {"kind": "exo"}),
    # others
    CheckValue("s-dpo, two rejected", (0.5142950728,), _softmax_dpo),
    _row("mallows, theta, h .1", 0.6443194955, {"kind": "mallows"}, mean_entropy=0.1),
    _row("mallows, phi .5, s .15", 0.5546133822, {"kind": "mallows", "form": "phi"}, mean_entropy=0.5),
    _row(
        "mallows, phi .5, s -.15",
        0.8540069006,
        {"kind": "mallows", "form": "phi"},
        mean_entropy=0.5,
        chosen_logps=-12.0,
        rejected_logps=-11.0,
        reference_chosen_logps=-11.5,
        reference_rejected_logps=-12.0,
    ),
    CheckValue("mallows, Kendall's marginals", (2 / 3, 16 / 21, 88 / 105), _kendall_marginals),
    _row("nash-md, one token", 1.0, {"kind": "nash-md"}, pair_logit=math.log(0.7 / 0.3)),
    # wrappers
    CheckValue("beta-dpo, weights", (0.9168553557, 0.9168553557, 0.4578333618, 0.4578333618), _keep_weights),
    CheckValue("beta-dpo, beta and loss after the draw", (0.13, 0.6017868702), _beta_after_draw),
    CheckValue("beta-dpo, first running mean and deviation", (0.1, 0.1290994449), _first_moments),
    CheckValue("dr-dpo, b' 1", (0.5473617749,), _robust(1.0)),
    CheckValue("dr-dpo, b' .1", (0.3080132986,), _robust(0.1)),
    CheckValue(
        "wpo, weight",
        (0.6703200460,),
        lambda dtype: build_objective({"kind": "wpo"})(
            pairs(dtype, chosen_squared_probability_log=-0.1, rejected_squared_probability_log=-0.3)
        ).metrics["weight"],
    ),
    CheckValue("chase, fast, alpha .5", (0.9503368256,), _chase("fast")),
    CheckValue("chase, slow as reported, alpha .5", (0.3245671895,), _chase("slow", "reported")),
    CheckValue("chase, slow bounded, alpha .5", (1.0183267451,), _chase("slow")),
    CheckValue(
        "did: distribution, entropy, best rejected",
        (0.4444444444, 0.3703703704, 0.1851851852, 1.0405805590, 0.4391850754, 0.2886618873, 0.2721530373),
        _did,
    ),
)
