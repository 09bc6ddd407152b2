"""``sparring evaluate`` on files of answers and with function scorers; what starts engines is in tests/e2e/test_evaluate.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from job_world import SPEC, publish
from small_models import layer_shapes, write_adapter, write_model, write_prompts
from typer.testing import CliRunner, Result

from learner.errors import InputError
from learner.records import ADAPTER_FILES, Prompt, ScorerIdentity
from services.cli.main import app
from services.evaluation.sampling import Written, best_of
from services.evaluation.sides import ModelSide, find_side, on_one_engine
from services.jobs.spec import JobSpec
from services.jobs.store import JobStore
from services.settings import Settings
from workers.scorers import function
from workers.scorers.base import Comparison, ScoreResult


def by_length(_prompt: Prompt, answers: Sequence[str]) -> list[float]:
    """More is better."""
    return [float(len(answer)) for answer in answers]


@pytest.fixture(autouse=True)
def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry_points(group: str, name: str | None = None) -> list[EntryPoint]:
        return [EntryPoint("length", f"{__name__}:by_length", group)] if name in (None, "length") else []

    monkeypatch.setattr(function, "entry_points", entry_points)
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A candidate whose answers are longer to three of four instructions, and as long to the fourth."""
    paths = []
    for name, lengths in (("candidate", (9, 8, 7, 4)), ("baseline", (3, 7, 1, 4))):
        rows = [
            {"instruction": f"Question {place}?", "output": "x" * length, "generator": name, "dataset": "d"}
            for place, length in enumerate(lengths)
        ]
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(rows))
        paths.append(str(path))
    return paths[0], paths[1]


@pytest.fixture
def store() -> JobStore:
    settings = Settings.load()
    settings.home.mkdir(parents=True, exist_ok=True)
    return JobStore(settings.store_url)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def refused(*arguments: object) -> str:
    """The sentence with which the command refuses."""
    result = run(*arguments)
    assert isinstance(result.exception, InputError), (result.output, result.exception)
    return str(result.exception)


def test_two_files_are_compared_by_a_function(files: tuple[str, str]) -> None:
    result = run(*files, "--judge", "function:length", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert (data["win_rate"], data["tie_rate"], data["compared"], data["without_verdict"]) == (0.875, 0.25, 4, 0)
    assert data["win_rate_low"] < 0.875 < data["win_rate_high"]
    equal = [data[f"length_controlled_win_rate{end}"] for end in ("_low", "", "_high")]
    assert equal == sorted(equal) and equal[1] < data["mean_preference"], "length alone had won"
    assert data["candidate"] == {"name": files[0], "mean_characters": 7.0, "best_of": None, "truncated_share": None}
    assert data["judge"]["kind"] == "function" and data["judge"]["name"] == "length"


def test_the_table_says_the_same(files: tuple[str, str]) -> None:
    shown = run(*files, "--judge", "function:length", "--count", 3).output
    assert "100.0% [" in shown and "3 of 3" in shown and "length-controlled win rate" in shown
    assert "mean length 8 characters" in shown
    tied = run(*files, "--judge", "function:length", "--tie-margin", 0.49).output
    assert "50.0%" in tied, "lengths that differ by one letter are as good as equal now"


def test_answers_and_verdicts_are_kept_where_asked(files: tuple[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run(*files, "--judge", "function:length", "--out", out, "--json")
    assert first.exit_code == 0, first.output
    kept = json.loads((out / "evaluation.json").read_text())
    assert kept["win_rate"] == 0.875 and len(kept["preferences"]) == 4 and kept["preferences"][3]["preference"] == 0.5
    again = run(out / "candidate" / "model_outputs.json", files[1], "--judge", "function:length", "--json")
    assert json.loads(again.stdout)["win_rate"] == 0.875
    assert "is not empty; name a new folder" in refused(*files, "--judge", "function:length", "--out", out)


def test_a_place_that_cannot_take_the_result_is_refused_before_anything_starts(
    files: tuple[str, str], tmp_path: Path
) -> None:
    for out, sentence in (
        (files[0], "is a file; name a new folder"),
        (f"{files[0]}/out", "cannot be written (Not a directory); name a place"),
    ):
        assert refused("no", "sides", "--judge", "none", "--out", out).startswith(f"--out: {out} {sentence}")


def test_prompts_choose_which_answers_are_compared(files: tuple[str, str], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"id": "a", "prompt": "Question 3?"}\n')
    data = json.loads(run(*files, "--prompts", prompts, "--judge", "function:length", "--json").stdout)
    assert (data["compared"], data["win_rate"]) == (1, 0.5)
    prompts.write_text('{"id": "a", "prompt": "Question 3?"}\n{"id": "b", "prompt": "What else?"}\n')
    said = refused(*files, "--prompts", prompts, "--judge", "function:length")
    assert "holds no answer to 1 of 2 prompts, the first is 'b' ('What else?')" in said


def test_a_jobs_training_scorer_and_gold_judge_are_found(files: tuple[str, str], store: JobStore) -> None:
    home = Settings.load().home
    spec: dict[str, Any] = SPEC | {"scorer": {"model": {"kind": "function", "name": "length"}, "temperature": 4.0}}
    job = store.create(JobSpec.model_validate(spec), home=home)
    soft = json.loads(run(*files, "--judge", f"scorer:{job.id}", "--json").stdout)
    hard = json.loads(run(*files, "--judge", "function:length", "--json").stdout)
    assert soft["win_rate"] == hard["win_rate"] and soft["mean_preference"] < hard["mean_preference"], "its temperature"
    assert f"{job.id} has no gold judge" in refused(*files, "--judge", f"gold:{job.id}")
    gold = store.create(JobSpec.model_validate(SPEC | {"evaluation": {"gold": "length"}}), home=home)
    assert json.loads(run(*files, "--judge", f"gold:{gold.id}", "--json").stdout) == hard


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--judge: missing; name who judges"),
        (("--judge", "length"), "--judge: 'length' is none of scorer:JOB"),
        (("--judge", "oracle:x"), "--judge: 'oracle' is no kind of judge"),
        (
            ("--judge", "function:none"),
            "--judge: this installation offers no scorer function 'none'; it offers: length",
        ),
        (("--judge", "pairrm:./nowhere"), "--judge: ./nowhere is neither a folder nor a name"),
        (("--judge", "scorer:none-abcdef"), "there is no job 'none-abcdef'"),
        (("--judge-url", "http://localhost:1/v1"), "--judge-url and --judge-model go together"),
        (("--judge", "function:length", "--judge-url", "http://x/v1", "--judge-model", "m"), "both name a judge"),
        (("--judge", "function:length", "--best-of", 4), "--best-of: 4 does not go with the answers of"),
    ],
)
def test_what_does_not_go_together_is_said_in_a_sentence(
    files: tuple[str, str], store: JobStore, arguments: tuple[object, ...], said: str
) -> None:
    assert said in refused(*files, *arguments)


def test_sides_that_are_not_there_are_said(files: tuple[str, str], store: JobStore, tmp_path: Path) -> None:
    judge = ("--judge", "function:length")
    assert "CANDIDATE: nothing is neither a file of answers" in refused("nothing", files[1], *judge)
    assert "none.json: no such file" in refused(files[0], "none.json", *judge)
    assert "there is no job 'job-abcdef'" in refused("job-abcdef@3", files[1], *judge)
    job = store.create(JobSpec.model_validate(SPEC), home=Settings.load().home)
    assert f"CANDIDATE: {job.id} has no best version yet" in refused(f"{job.id}@best", files[1], *judge)
    assert "'x' is no version; write" in refused(f"{job.id}@x", files[1], *judge)
    assert f"version: 3 of {job.id} is not on disk" in refused(f"{job.id}@3", files[1], *judge)
    model = write_model(tmp_path / "model")
    assert "--prompts: missing" in refused(model, model, *judge)


def test_adapters_that_cannot_be_served_are_refused_before_anything_starts(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    prompts = write_prompts(tmp_path / "prompts.jsonl", 2)
    common = (model, "--prompts", prompts, "--judge", "function:length")
    alone = write_adapter(tmp_path / "alone")
    assert "does not say which model it belongs to; name it with --base" in refused(alone, *common)
    assert "is neither a folder nor a name on the" in refused(alone, *common, "--base", "./gone")
    dora = write_adapter(tmp_path / "dora", use_dora=True)
    assert "CANDIDATE: its adapter_config.json has use_dora" in refused(dora, *common, "--base", model)
    head = write_adapter(tmp_path / "head", {"lm_head": (300, 64)})
    assert "adapts lm_head, which samplers cannot serve" in refused(head, *common, "--base", model)
    other = write_adapter(tmp_path / "other", layer_shapes(hidden=32))
    assert "it was made for another model" in refused(other, *common, "--base", model)
    full = write_adapter(tmp_path / "full", target_modules=sorted(layer_shapes()))  # as peft writes `all-linear`
    assert "--max-tokens: 120 of a context" in refused(full, *common, "--base", model, "--max-tokens", 120)
    assert "--max-tokens: 120 of a context of 128 leaves 8 tokens" in refused(model, *common, "--max-tokens", 120)
    assert "--best-of: 2 answers at --temperature 0" in refused(model, *common, "--best-of", 2, "--temperature", 0)


def test_a_jobs_version_and_its_bare_model_share_one_engine(store: JobStore, tmp_path: Path) -> None:
    model, home = write_model(tmp_path / "model"), Settings.load().home
    spec = JobSpec.model_validate(
        SPEC | {"policy": {"model": str(model), "dtype": "float32", "max_context_tokens": 64}}
    )
    job = store.create(spec, home=home)
    folder = write_adapter(tmp_path / "adapter", rank=4)
    publish(home, job.id, 3, {name: (folder / name).read_bytes() for name in ADAPTER_FILES})
    version = find_side(f"{job.id}@3", base=None, field="CANDIDATE")
    bare = find_side(str(model), base=None, field="BASELINE")
    assert isinstance(version, ModelSide) and isinstance(bare, ModelSide)
    assert (version.rank, version.job_id, version.policy.max_context_tokens) == (4, job.id, 64)
    shared = on_one_engine({"candidate": version, "baseline": bare})["baseline"]
    assert isinstance(shared, ModelSide) and shared.policy == spec.policy and shared.adapter is None
    other = find_side(str(write_model(tmp_path / "other")), base=None, field="BASELINE")
    assert on_one_engine({"candidate": version, "baseline": other})["baseline"] == other


ANSWERS = ["rock", "paper", "scissors", "all"]


class Cyclic:
    """A scorer that prefers, of three answers, one in a cycle, and the fourth to all."""

    identity = ScorerIdentity(kind="test", name="cyclic", version="1")

    def score(self, comparisons: Sequence[Comparison]) -> list[ScoreResult]:
        strength = np.array([[0, 1, -3, -2], [-1, 0, 1, -2], [3, -1, 0, -2], [2, 2, 2, 0]], dtype=np.float32)
        results = []
        for comparison in comparisons:
            places = [ANSWERS.index(answer) for answer in comparison.answers]
            results.append(ScoreResult(strength[np.ix_(places, places)]))
        return results


def test_best_of_n_keeps_the_answer_with_the_highest_mean_win_probability() -> None:
    written = Written((("rock", "scissors", "paper"), ("all", "rock", "scissors"), ("paper", "paper", "paper")), 0.0)
    seen: list[tuple[str, int, int]] = []
    prompts = [Prompt.of(str(place), "?") for place in range(3)]
    kept = best_of(written, prompts, Cyclic(), "candidate", lambda *said: seen.append(said))
    assert kept == ["scissors", "all", "paper"]
    assert seen[-1] == ("best of 3 (candidate)", 3, 3)
