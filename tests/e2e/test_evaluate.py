"""``sparring evaluate`` with real vLLM and PairRM: an adapter against its base, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.world import Command, World
from tests.workers.sampler_world import adapter_files

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SMALL = ("--max-tokens", "12", "--kv-cache-gib", "0.25", "--max-running-requests", "64", "--threads", "1")


@pytest.fixture(scope="module")
def adapter(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    for name, content in adapter_files(world.policy, seed=1).items():
        (folder / name).write_bytes(content)
    return folder


def evaluated(world: World, out: Path, *arguments: str | Path) -> dict[str, Any]:
    """What a run that went well wrote down."""
    command = Command(
        "evaluate",
        *arguments,
        "--judge",
        f"pairrm:{world.pairrm}",
        "--out",
        out,
        *SMALL,
        SPARRING_HOME=str(out.parent / "home"),
    )
    ended = command.wait()
    assert ended.code == 0, ended.output
    assert command.leaves_nothing(), "vLLM outlived the command"
    result: dict[str, Any] = json.loads((out / "evaluation.json").read_text())
    return result


def outputs(out: Path, role: str) -> list[str]:
    return [row["output"] for row in json.loads((out / role / "model_outputs.json").read_text())]


def test_an_adapter_plays_against_its_base_and_the_kept_answers_give_the_same_numbers(
    world: World, adapter: Path, tmp_path: Path
) -> None:
    out = tmp_path / "first"
    prompts = world.root / "held_out.jsonl"
    first = evaluated(
        world, out, adapter, world.policy, "--base", world.policy, "--prompts", prompts, "--temperature", "0"
    )
    assert (first["prompts"], first["compared"], first["judge"]["kind"]) == (24, 24, "pairrm")
    assert first["win_rate_low"] <= first["win_rate"] <= first["win_rate_high"]
    assert (
        0
        < first["length_controlled_win_rate_low"]
        <= first["length_controlled_win_rate"]
        <= first["length_controlled_win_rate_high"]
        < 1
    )
    # both are greedy: what differs is the adapter
    pairs = list(zip(outputs(out, "candidate"), outputs(out, "baseline"), strict=True))
    assert sum(candidate != baseline for candidate, baseline in pairs) > 12

    again = evaluated(
        world,
        tmp_path / "again",
        out / "candidate" / "model_outputs.json",
        out / "baseline" / "model_outputs.json",
        "--prompts",
        prompts,
    )
    for name in ("win_rate", "tie_rate", "length_controlled_win_rate", "length_controlled_win_rate_low", "preferences"):
        assert again[name] == first[name], name


def test_the_best_of_several_answers_is_liked_better_than_one(world: World, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "best"
    result = evaluated(
        world,
        out,
        adapter,
        adapter,
        "--base",
        world.policy,
        "--prompts",
        world.root / "held_out.jsonl",
        "--best-of",
        "8",
    )
    assert (result["candidate"]["best_of"], result["baseline"]["best_of"]) == (8, 1)
    assert result["mean_preference"] > 0.5 and result["win_rate"] > 0.6
