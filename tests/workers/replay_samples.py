"""Tickets and scored groups to put into a ledger."""

from __future__ import annotations

from learner.records import (
    Answer,
    AnswerSource,
    FinishReason,
    Prompt,
    SamplingParameters,
    ScoredGroup,
    ScorerIdentity,
    Ticket,
)

SAMPLING = SamplingParameters(temperature=1.0, top_p=1.0, top_k=0, max_tokens=64)
SCORER = ScorerIdentity(kind="function", name="test", version="1")


def ticket(index: int, *, round: int = 0, version: int = 0, attempt: int = 0) -> Ticket:
    prompt = Prompt.of(f"p{index}", f"Question {index}?")
    return Ticket(
        group_id=f"job/r{round}/{index}",
        round=round,
        index=index,
        version=version,
        seed=index,
        attempt=attempt,
        prompt=prompt,
        prompt_token_ids=(1, 2, 3),
    )


def group(source: Ticket, *, tokens: int = 4, answers: int = 2, outside: bool = False) -> ScoredGroup:
    def answer(k: int) -> Answer:
        ids = tuple(range(10 + k, 10 + k + tokens))
        if outside:
            return Answer(text=f"a{k}", token_ids=ids, finish_reason=FinishReason.GIVEN, source=AnswerSource.FILE)
        return Answer(
            text=f"answer {k} of {source.index}",
            token_ids=ids,
            logprobs=tuple(-0.1234567 * (k + 1) * (t + 1) for t in range(tokens)),
            finish_reason=FinishReason.STOP,
            module="fast",
            version=source.version,
            adapter_digest="d" * 64,
            sampling=SAMPLING,
            seed=source.seed + k,
            sampler="sampler-0",
        )

    return ScoredGroup(
        group_id=source.group_id,
        round=source.round,
        index=source.index,
        version=source.version,
        prompt=source.prompt,
        prompt_token_ids=source.prompt_token_ids,
        answers=tuple(answer(k) for k in range(answers)),
        scorer=SCORER,
        ordered_logits=tuple(tuple(0.5 * (j - i) for j in range(answers)) for i in range(answers)),
    )
