"""Groups of two given answers, which nobody sampled and no scorer compared: a file's pairs, and people's preferences (rule 1)."""

from __future__ import annotations

from learner.pairing import skip_reason
from learner.records import Answer, FinishReason, ScoredGroup, ScorerIdentity, Ticket
from services.jobs.pairs import AnswerIds
from services.jobs.spec import JobSpec
from workers.cluster import Link


def pair_group(
    ticket: Ticket,
    texts: tuple[str, str],
    token_ids: AnswerIds,
    logit: float,
    scorer: ScorerIdentity,
) -> ScoredGroup:
    """The group of a given pair: the better answer first. Its answers have no version, so that staleness does not apply.

    Args:
        ticket: under which it was admitted; it says where the answers come from.
        texts: the better and the worse answer.
        token_ids: theirs.
        logit: that the better one beats the other.
        scorer: what or who said which is better.
    """
    return ScoredGroup(
        group_id=ticket.group_id,
        round=ticket.round,
        index=ticket.index,
        version=ticket.version,
        prompt=ticket.prompt,
        prompt_token_ids=ticket.prompt_token_ids,
        answers=tuple(
            Answer(text=text, token_ids=tuple(ids), finish_reason=FinishReason.GIVEN, source=ticket.source)
            for text, ids in zip(texts, token_ids, strict=True)
        ),
        scorer=scorer,
        ordered_logits=((0.0, logit), (-logit, 0.0)),
    )


async def put_pair(queue: Link, group: ScoredGroup, spec: JobSpec) -> None:
    """Store a given pair in the replay queue, or write down why nothing can be learned from it. Waits while the queue is full."""
    await queue.call(
        "put",
        group,
        skip_reason(group, spec.pairing, spec.sampling.truncated, spec.scorer.temperature),
        timeout_seconds=spec.resources.queue.put_timeout_seconds,
        setting="resources.queue.put_timeout_seconds",
    )
