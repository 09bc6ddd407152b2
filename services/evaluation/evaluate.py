"""One evaluation from beginning to end: everything is checked, the sides write, PairRM picks the best of several, and the judge compares."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from learner.errors import InputError
from learner.records import Prompt, SamplingParameters
from services.evaluation.alpaca import read_evaluation_prompts, write_answers
from services.evaluation.compare import Outcome, Player, compare
from services.evaluation.judges import FORMS, Judge, Progress, ScorerJudge, find_scorer, load_scorer
from services.evaluation.sampling import EngineSettings, Writer, Written, best_of, best_of_scorer, write_all
from services.evaluation.sides import AnswersSide, ModelSide, Side, find_side, on_one_engine, rendered
from services.evaluation.url_judge import UrlJudge
from services.jobs.files import writing
from workers.config import PairRMScorer, ScorerConfig
from workers.scorers.base import PreferenceScorer

ANSWERS_FILE = "model_outputs.json"
RESULT_FILE = "evaluation.json"
DEFAULT_PAIRRM = "llm-blender/PairRM-hf"


@dataclass(frozen=True)
class Contender:
    """A side as a person names it, and how many answers it may write to each prompt."""

    role: str
    name: str
    best_of: int

    @property
    def option(self) -> str:
        """The option that sets ``best_of``."""
        return "--best-of" if self.role == "candidate" else "--baseline-best-of"


@dataclass(frozen=True)
class Request:
    """What is to be evaluated.

    Attributes:
        base: model of adapter folders.
        prompts: where they come from; None: the instructions of a side's answers file.
        judge: a scorer by one of `FORMS`, or a judge behind a URL; None: the training scorer of a side's job.
        best_of_scorer: the PairRM that picks; None: the judge where it is one, else the published one.
        out: new folder for the answers and the result; None keeps nothing.
    """

    candidate: Contender
    baseline: Contender
    base: str | None
    prompts: str | None
    count: int | None
    column: str
    split: str
    judge: str | UrlJudge | None
    tie_margin: float
    best_of_scorer: str | None
    sampling: SamplingParameters
    seed: int
    engine: EngineSettings
    out: Path | None


def evaluate(request: Request, progress: Progress) -> Outcome:
    """Carry an evaluation out.

    Raises:
        InputError: something named is not there, or does not go together; said before anything is started, where it can be.
        WorkerError: vLLM's process died.
    """
    contenders = (request.candidate, request.baseline)
    if request.out is not None:
        _make_folder(request.out)
    sides = on_one_engine(
        {each.role: find_side(each.name, base=request.base, field=each.role.upper()) for each in contenders}
    )
    judge = _judge(request, list(sides.values()))
    prompts = _prompts(request, list(sides.values()))
    for contender in contenders:
        _check_best_of(contender, sides[contender.role], request.sampling)
    picker = _picker(request, judge)
    given = {role: side.given.answers(prompts) for role, side in sides.items() if isinstance(side, AnswersSide)}
    written = _written(request, sides, prompts, progress)

    scorer = None if isinstance(judge, UrlJudge) else load_scorer(judge.model, request.engine.threads)
    players = {}
    for contender in contenders:
        role = contender.role
        if role in given:
            players[role] = Player(contender.name, tuple(given[role]))
            continue
        answers = [group[0] for group in written[role].answers]
        if contender.best_of > 1:
            # the picker is the judge itself where they are the same model: it is loaded once
            same = scorer is not None and isinstance(judge, ScorerConfig) and judge.model == picker
            picking = scorer if same and scorer is not None else load_scorer(picker, request.engine.threads)
            answers = best_of(written[role], prompts, picking, role, progress)
        players[role] = Player(contender.name, tuple(answers), contender.best_of, written[role].truncated_share)
    if request.out is not None:
        with writing(f"--out: {request.out}"):
            for role, player in players.items():
                write_answers(request.out / role / ANSWERS_FILE, prompts, player.answers, player.name)
    outcome = compare(
        prompts,
        players["candidate"],
        players["baseline"],
        _ready(judge, scorer),
        tie_margin=request.tie_margin,
        seed=request.seed,
        progress=progress,
    )
    if request.out is not None:
        with writing(f"--out: {request.out}"):
            _write_result(request.out / RESULT_FILE, outcome)
    return outcome


def _make_folder(folder: Path) -> None:
    """The folder for the answers and the result, before the work whose end it is."""
    with writing(f"--out: {folder}"):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--out: {folder} is a file; name a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"--out: {folder} is not empty; name a new folder")


def _judge(request: Request, sides: Sequence[Side]) -> ScorerConfig | UrlJudge:
    if isinstance(request.judge, UrlJudge):
        return request.judge
    if request.judge is not None:
        return find_scorer(request.judge)
    for side in sides:
        if isinstance(side, ModelSide) and side.job_id is not None:
            return find_scorer(f"scorer:{side.job_id}")
    raise InputError(f"--judge: missing; name who judges ({FORMS}), or give --judge-url and --judge-model")


def _prompts(request: Request, sides: Sequence[Side]) -> list[Prompt]:
    if request.prompts is not None:
        return read_evaluation_prompts(request.prompts, limit=request.count, column=request.column, split=request.split)
    for side in sides:
        if isinstance(side, AnswersSide):
            return list(side.given.prompts[: request.count])
    raise InputError("--prompts: missing; neither side is a file of answers, whose instructions could be taken")


def _check_best_of(contender: Contender, side: Side, sampling: SamplingParameters) -> None:
    if contender.best_of == 1:
        return
    if isinstance(side, AnswersSide):
        raise InputError(
            f"{contender.option}: {contender.best_of} does not go with the answers of {side.name}, which are written already; leave it out"
        )
    if sampling.temperature == 0:
        raise InputError(
            f"{contender.option}: {contender.best_of} answers at --temperature 0 are all the same; raise the temperature"
        )


def _picker(request: Request, judge: ScorerConfig | UrlJudge) -> PairRMScorer:
    if request.best_of_scorer is not None:
        return best_of_scorer(request.best_of_scorer)
    if isinstance(judge, ScorerConfig) and isinstance(judge.model, PairRMScorer):
        return judge.model
    return best_of_scorer(DEFAULT_PAIRRM)


def _written(request: Request, sides: dict[str, Side], prompts: list[Prompt], progress: Progress) -> dict[str, Written]:
    """The answers of the sides that write."""
    writers = [
        Writer(
            contender.role,
            side,
            rendered(side, prompts, request.sampling.max_tokens, contender.role.upper()),
            contender.best_of,
        )
        for contender in (request.candidate, request.baseline)
        if isinstance(side := sides[contender.role], ModelSide)
    ]
    if not writers:
        return {}
    from workers import process_tree

    process_tree.guard()  # whatever ends this process, vLLM's end with it (rule 10)
    return write_all(writers, prompts, request.sampling, request.engine, seed=request.seed, progress=progress)


def _ready(judge: ScorerConfig | UrlJudge, scorer: PreferenceScorer | None) -> Judge:
    if isinstance(judge, UrlJudge):
        return judge
    assert scorer is not None
    return ScorerJudge(scorer, judge.temperature)


def _write_result(path: Path, outcome: Outcome) -> None:
    """The numbers, and what the judge said of each prompt."""
    rows = [
        {"id": prompt.id, "preference": preference}
        for prompt, preference in zip(outcome.prompts, outcome.preferences, strict=True)
    ]
    path.write_text(json.dumps({**outcome.as_data(), "preferences": rows}, indent=2, ensure_ascii=False) + "\n")
