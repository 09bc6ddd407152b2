"""Which rule makes the records that an objective learns from. Pure, and free of torch and numpy."""

from __future__ import annotations

from typing import Literal

from learner.config import PairingConfig, PairingRule
from learner.errors import InputError
from learner.objectives.parameters import Answers, ObjectiveParameters

Rule = PairingRule | Literal["as-given"]
"""`as-given`: the first two answers in their own order, which nobody can ask for."""

BY_OBJECTIVE: dict[Answers, Rule] = {
    "pair": "best-worst",
    "given-pair": "as-given",
    "top-vs-rest": "top-vs-rest",
    "all": "all",
}

TOLD: dict[Answers, str] = {
    "pair": "pairs",
    "given-pair": "pairs in the order of the file",
    "top-vs-rest": "top vs rest",
    "all": "all",
}


def resolve_rule(parameters: ObjectiveParameters, pairing: PairingConfig) -> Rule:
    """The rule that makes the records: what was asked for, or what the objective wants.

    Raises:
        InputError: the rule makes records that the objective cannot learn from.
    """
    wanted = parameters.record
    if pairing.rule == "auto":
        return BY_OBJECTIVE[wanted]
    makes = {"top-vs-rest": "top-vs-rest", "all": "all"}.get(pairing.rule, "pair")
    # two answers are a top one and its rest, and SPPO regresses any number
    if makes != wanted and not (makes == "pair" and wanted == "top-vs-rest"):
        raise InputError(
            f"pairing.rule: {pairing.rule} does not go with objective.kind: {parameters.kind}, which learns from "
            f"{TOLD[wanted]}; use auto"
        )
    return pairing.rule
