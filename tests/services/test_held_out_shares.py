"""Held-out prompts of a job that learns domain after domain: equal shares, always the same ones, none missing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from small_models import job, write_world

from learner.errors import InputError
from services.jobs import spec_checks
from services.jobs.load import parse_job
from services.jobs.validate import ValidatedJob, validate_job


@pytest.fixture(autouse=True)
def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec_checks, "offered_functions", lambda: ("length",))


@pytest.fixture
def world(tmp_path: Path) -> Path:
    write_world(tmp_path)
    write(tmp_path / "prompts.jsonl", {"a": 40, "b": 40, "c": 40}, "p")
    return tmp_path


def write(path: Path, counts: Mapping[str | None, int], prefix: str) -> None:
    rows = [
        {"id": f"{prefix}-{domain}-{number}", "prompt": f"{prefix} {domain} {number}", "domain": domain}
        for domain, count in counts.items()
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def validated(world: Path, held_out: Mapping[str | None, int], count: int, **sections: Any) -> ValidatedJob:
    write(world / "held-out.jsonl", held_out, "h")
    domains = sections.pop("domains", ["a", "b", "c"])
    schedule = {"domains": domains, "rounds": 1}
    evaluation = {"prompts": {"source": "held-out.jsonl"}, "count": count}
    return validate_job(parse_job(job(schedule=schedule, evaluation=evaluation, **sections)), world)


def shares(made: ValidatedJob) -> Counter[str | None]:
    assert made.evaluation is not None
    return Counter(prompt.domain for prompt in made.evaluation.prompts)


def test_every_listed_domain_gives_an_equal_share_and_others_give_none(world: Path) -> None:
    made = validated(world, {"a": 30, "other": 30, "b": 9, None: 30, "c": 12}, 13)
    assert shares(made) == {"a": 4, "b": 4, "c": 4}
    assert made.warnings == ()


def test_the_shares_are_drawn_by_the_seed_alone(world: Path) -> None:
    drawn = [validated(world, {"a": 30, "b": 30, "c": 30}, 12, seed=seed).evaluation for seed in (0, 0, 1)]
    turned = validated(world, {"c": 30, "b": 30, "a": 30}, 12).evaluation
    assert drawn[0] is not None and drawn[1] is not None and drawn[2] is not None and turned is not None
    assert drawn[0].prompts == drawn[1].prompts == turned.prompts, "the order in the file does not matter"
    assert drawn[0].prompts != drawn[2].prompts


def test_a_short_domain_gives_what_it_has_and_a_warning_names_it(world: Path) -> None:
    made = validated(world, {"a": 30, "b": 2, "c": 30}, 30)
    assert shares(made) == {"a": 10, "b": 2, "c": 10}
    assert made.warnings == (
        "evaluation.count: 30 is 10 a domain, which is more than there are of b (2); all of those are used",
    )


def test_a_listed_domain_without_held_out_prompts_is_refused_with_what_to_do(world: Path) -> None:
    with pytest.raises(
        InputError, match=r"evaluation\.prompts: .*held-out\.jsonl holds no prompt of the domain 'c'"
    ) as caught:
        validated(world, {"a": 3, "b": 2, None: 4}, 12)
    assert "found: a (3), b (2)" in str(caught.value)
    assert "add held-out prompts of it" in str(caught.value)
    with pytest.raises(InputError, match="none with a domain"):
        validated(world, {None: 4}, 12)


def test_it_is_refused_also_where_prompts_cannot_be_rendered_yet(world: Path) -> None:
    (world / "policy" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="holds no prompt of the domain 'c'"):
        validated(world, {"a": 3, "b": 2}, 12)


def test_fewer_prompts_than_domains_are_refused(world: Path) -> None:
    with pytest.raises(InputError, match=r"evaluation\.count: 2 is not enough for 3 domains; raise it to 3 or more"):
        validated(world, {"a": 3, "b": 2, "c": 2}, 2)
