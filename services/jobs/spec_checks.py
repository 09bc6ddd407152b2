"""What a job says that cannot work, as far as the job file alone shows it (rule 15). Pure; one sentence for each problem."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from math import ceil

from learner.config import LEAST_ROBUST_RANKS
from learner.objectives.parameters import SppoParameters
from services.jobs.adapter_checks import adapter_problems
from services.jobs.machine import SERVICE_CPUS, Machine
from services.jobs.model_files import EMBEDDING_MODULES, OUTPUT_MODULES
from services.jobs.objective_checks import objective_problems
from services.jobs.problems import one_of
from services.jobs.spec import JobSpec
from workers.config import FunctionScorer, PairRMScorer

SCORER_ENTRY_POINTS = "sparring.scorers"

QUEUED_BYTES_PER_TOKEN = 24
"""A token's id, log-probability and text in the replay queue, roughly."""


def problems(spec: JobSpec) -> Iterator[str]:
    """Combinations that cannot work, whatever machine and model are used."""
    yield from objective_problems(spec)
    yield from adapter_problems(spec)
    yield from _offline(spec)
    yield from _opponent(spec)
    yield from _adapters(spec)
    yield from _slots(spec)
    yield from _queue(spec)
    yield from _devices(spec)
    yield from _placement(spec)
    yield from _ranks(spec)
    yield from _judges(spec)
    yield from _times(spec)


def machine_problems(spec: JobSpec, machine: Machine) -> Iterator[str]:
    """What the job asks for beyond this machine. Not asked where a cluster runs the job."""
    resources = spec.resources
    sampler, scorer, learner = resources.sampler, resources.scorer, resources.learner
    cpus, gpus = learner.ranks * learner.cpus + SERVICE_CPUS, learner.ranks * learner.gpus
    several = f"{learner.ranks} x " if learner.ranks > 1 else ""
    told = f"learner {several}{learner.cpus:g} + services {SERVICE_CPUS:g}"
    remedy = "lower resources.learner.cpus" + (" or resources.learner.ranks" if several else "")
    if spec.samples:
        cpus += sampler.count * sampler.cpus + scorer.cpus
        gpus += sampler.count * sampler.gpus + scorer.gpus
        told = f"sampler {sampler.count} x {sampler.cpus:g} + scorer {scorer.cpus:g} + {told}"
        remedy = "lower resources.*.cpus or resources.sampler.count" + (
            " or resources.learner.ranks" if several else ""
        )
    if cpus > machine.cpus + 1e-9:
        yield f"resources: {told} = {cpus:g} CPUs, and this machine has {machine.cpus}; {remedy}"
    if gpus > machine.gpus:
        has = f"this machine has {machine.gpus}" if machine.gpus else "this machine has no GPU"
        yield f"resources: the workers ask for {gpus:g} GPUs, and {has}; set resources.*.gpus to what is there, or to 0 for the CPU"
    for name, threads in (("sampler", sampler.threads), ("scorer", scorer.threads), ("learner", learner.threads)):
        if threads > machine.cpus and (spec.samples or name == "learner"):
            yield f"resources.{name}.threads: {threads} is more than the {machine.cpus} CPUs of this machine; lower it"


def warnings(spec: JobSpec) -> Iterator[str]:
    """What works but is seldom meant."""
    yield from _without_effect(spec)
    sampling = spec.sampling
    if isinstance(spec.objective, SppoParameters) and spec.offline:
        yield (
            "objective.kind: sppo learns offline against objective.reference: round, the policy at the round's start, although the file's "
            "answers were not written by it; its win probabilities are the file's"
        )
    elif isinstance(spec.objective, SppoParameters):
        unlike = [
            f"{name}: {value:g}"
            for name, value, own in (
                ("temperature", sampling.temperature, 1.0),
                ("top_p", sampling.top_p, 1.0),
                ("top_k", sampling.top_k, 0),
            )
            if value != own
        ]
        if unlike:
            yield (
                f"sampling.{', '.join(unlike)}: SPPO's win probabilities are measured against answers of the policy itself, "
                "which are drawn at temperature: 1, top_p: 1, top_k: 0"
            )
    if isinstance(spec.objective, SppoParameters) and spec.feedback.share > 0:
        yield (
            f"feedback.share: {spec.feedback.share:g} lets sppo learn from answers that the round's policy may not have written, against "
            "objective.reference: round; their win probabilities are people's"
        )
    if spec.scorer.shuffle:
        yield "scorer.shuffle: true permutes the scores at random, as a control experiment; nothing will be learned"
    if spec.output.keep_versions == "best-and-newest" and spec.evaluation.prompts is None:
        yield "output.keep_versions: best-and-newest has no best without evaluation.prompts; only the newest version is kept"
    scorer = spec.scorer.model
    if isinstance(scorer, FunctionScorer) and spec.evaluation.gold == scorer.name:
        yield f"evaluation.gold: {scorer.name} is the scorer itself, so it cannot show over-optimisation; name an independent judge"
    waiting = spec.schedule.prompts_per_round * (spec.schedule.max_staleness + 1)
    size = waiting * sampling.answers * sampling.max_tokens * QUEUED_BYTES_PER_TOKEN
    if size > spec.resources.queue.max_bytes and not spec.offline:
        yield (
            f"resources.queue.max_bytes: {waiting} waiting groups of {sampling.answers} answers may come to about {size} bytes when all "
            f"answers are of full length, more than {spec.resources.queue.max_bytes}; raise it, so that samplers need not wait"
        )


def _without_effect(spec: JobSpec) -> Iterator[str]:
    """Keys that say something other than their default, and that nothing reads."""
    for section, keys, switch, needed in (
        (spec.adapters, ("slow_rate_ratio", "swap", "swap_by", "swap_interval"), "slow", "chase"),
        (spec.adapters, ("slow_decay",), "slow", "average"),
        (spec.schedule, ("memory_share", "memory_bytes", "memory_rule"), "combine", "cofs"),
    ):
        name = "adapters" if section is spec.adapters else "schedule"
        for key in keys:
            value = getattr(section, key)
            if getattr(section, switch) != needed and value != type(section).model_fields[key].default:
                yield f"{name}.{key}: {value} has no effect without {name}.{switch}: {needed}"
    if spec.resources.placement.mode == "colocated" and not spec.samples:
        yield "resources.placement.mode: colocated has no effect without samplers; the learner has its machine for itself"
    schedule, interval = spec.schedule, spec.adapters.swap_interval
    steps = (
        schedule.training_rounds
        * schedule.stop_after_epochs
        * ceil(schedule.prompts_per_round / schedule.prompts_per_step)
    )
    if spec.adapters.slow == "chase" and spec.adapters.swap != "never" and interval > steps:
        yield (
            f"adapters.swap_interval: {interval} is more than the {steps} optimizer steps of the whole job, so that the two adapters are "
            "never compared; lower it, or set adapters.swap: never"
        )


def _offline(spec: JobSpec) -> Iterator[str]:
    """What offline learning cannot do: the answers are a file's, so nobody knows which policy wrote them, and no scorer compares them."""
    if not spec.offline:
        return
    if spec.objective.reference == "behaviour":
        yield (
            "objective.reference: behaviour does not go with schedule.mode: offline, whose answers carry no version that wrote them; use "
            "auto, start or round"
        )
    if spec.scorer.shuffle:
        yield "scorer.shuffle: true permutes a scorer's scores, and with schedule.mode: offline no scorer compares answers; leave it out"
    if spec.prompts.chosen_column == spec.prompts.rejected_column:
        yield (
            f"prompts.rejected_column: {spec.prompts.rejected_column} is prompts.chosen_column too; name the field of the worse answer"
        )


def _adapters(spec: JobSpec) -> Iterator[str]:
    modules = spec.adapters.target_modules
    if modules == "all-linear":
        return
    if not modules:
        yield "adapters.target_modules: the list is empty; name linear layers, or say all-linear"
    for name in modules:
        if name in OUTPUT_MODULES or name in EMBEDDING_MODULES:
            what = "output layer" if name in OUTPUT_MODULES else "embedding"
            yield f"adapters.target_modules: {name} is the {what}, which samplers cannot serve with an adapter; leave it out"
        elif not name.isidentifier():
            yield f"adapters.target_modules: {name!r} is not the plain name of a layer, like q_proj; patterns and paths are not taken"
    if len(set(modules)) != len(modules):
        yield "adapters.target_modules: a name stands twice; keep one"


def _opponent(spec: JobSpec) -> Iterator[str]:
    """Who answers beside the policy, and which objectives need or refuse that."""
    sampling, kind = spec.sampling, spec.objective.kind
    if sampling.opponent != "self" and spec.offline:
        yield (
            f"sampling.opponent: {sampling.opponent} does not go with schedule.mode: offline, where nobody answers training prompts; use self"
        )
    if sampling.opponent != "self" and isinstance(spec.objective, SppoParameters):
        yield (
            f"sampling.opponent: {sampling.opponent} does not go with sppo, whose win probabilities are measured against the round's policy, "
            "so that it must have written every answer; use self, or another objective"
        )
    last = spec.schedule.training_rounds - 1
    if sampling.opponent == "version" and (sampling.opponent_version or 0) >= last:
        yield (
            f"sampling.opponent_version: {sampling.opponent_version} would never be met: an opponent is older than the policy, and version "
            f"{last} is the last that writes answers; lower it, or raise schedule.rounds"
        )
    if kind == "xpo" and spec.offline:
        yield "objective.kind: xpo needs answers that version 0 wrote, which a file's do not say of themselves; use schedule.mode: rounds or online"
    elif kind == "xpo" and sampling.opponent != "start":
        yield (
            f"objective.kind: xpo compares the policy's answers with those of version 0, and sampling.opponent: {sampling.opponent} has none "
            "of these; set sampling.opponent: start"
        )
    if kind == "xpo" and spec.objective.reference not in ("auto", "start"):
        yield (
            f"objective.reference: {spec.objective.reference} does not go with xpo, whose opponent's answers must be the reference's own, and "
            "version 0 writes them; use auto or start"
        )
    if kind == "xpo" and spec.schedule.domains is not None:
        yield (
            f"schedule.domains: {list(spec.schedule.domains)} does not go with objective.kind: xpo, whose reference is the policy that the "
            "domain started from, while version 0 writes the opponent's answers; leave it out, or use another objective"
        )
    if kind == "nash-md" and not spec.offline:
        yield (
            "objective.kind: nash-md learns from answers of a mixture of policy and reference, which no sampler can draw, since a request "
            "carries one adapter; use schedule.mode: offline, or another objective"
        )


def _slots(spec: JobSpec) -> Iterator[str]:
    sampler, live = spec.resources.sampler, spec.live_adapters
    if sampler.chat_slots and spec.schedule.mode != "online":
        yield (
            f"resources.sampler.chat_slots: {sampler.chat_slots} does not go with schedule.mode: {spec.schedule.mode}, whose samplers must "
            "write the same answers again; set it to 0 or leave it out, and chat gets a sampler of its own"
        )
    if sampler.lora_slots is not None and sampler.lora_slots < live:
        beside = "" if spec.adapters.slow == "off" else f", adapters.slow: {spec.adapters.slow}"
        beside += "" if spec.sampling.fixed_opponent is None else f" and sampling.opponent: {spec.sampling.opponent}"
        beside += "" if not spec.chat_slots else f" and chat_slots: {spec.chat_slots}"
        yield (
            f"resources.sampler.lora_slots: {sampler.lora_slots} is too small for schedule.max_staleness: {spec.schedule.max_staleness}"
            f"{beside}, which keeps {live} adapters in use; raise it to {live} or leave it out"
        )
    needed = max(sampler.lora_slots or live, live)
    if sampler.cpu_lora_slots is not None and sampler.cpu_lora_slots < needed:
        yield (
            f"resources.sampler.cpu_lora_slots: {sampler.cpu_lora_slots} is less than the {needed} adapters that may be in use; "
            f"raise it to {needed} or leave it out"
        )


def _queue(spec: JobSpec) -> Iterator[str]:
    schedule, queue = spec.schedule, spec.resources.queue
    waiting = (schedule.max_staleness + 1) * schedule.prompts_per_round
    if waiting > queue.max_groups:
        yield (
            f"resources.queue.max_groups: {queue.max_groups} cannot hold the {waiting} groups of schedule.max_staleness: "
            f"{schedule.max_staleness} and schedule.prompts_per_round: {schedule.prompts_per_round}; raise it to {waiting}"
        )


def _devices(spec: JobSpec) -> Iterator[str]:
    resources = spec.resources
    for name, worker in (("scorer", resources.scorer), ("learner", resources.learner)):
        if worker.device == "cuda" and worker.gpus == 0:
            yield f"resources.{name}.device: cuda needs a GPU share; set resources.{name}.gpus"
        if worker.device == "cpu" and worker.gpus > 0:
            yield f"resources.{name}.gpus: {worker.gpus:g} would lie idle with device: cpu; set it to 0, or device to auto"
    sampler = resources.sampler
    if sampler.tensor_parallel_size > 1 and sampler.gpus not in (0, sampler.tensor_parallel_size):
        yield (
            f"resources.sampler.tensor_parallel_size: {sampler.tensor_parallel_size} needs as many GPUs for each sampler; set "
            f"resources.sampler.gpus: {sampler.tensor_parallel_size}, or 0 for as many processes on the CPU"
        )
    elif sampler.gpus > 1 and sampler.tensor_parallel_size == 1:
        yield (
            f"resources.sampler.gpus: {sampler.gpus:g} for one sampler, which uses one; set tensor_parallel_size: {sampler.gpus:g}, or "
            "gpus: 1 and a higher count"
        )
    if spec.policy.dtype == "float16":
        yield "policy.dtype: float16 does not go with training, whose small gradients would vanish in it; use bfloat16 or float32"


def _placement(spec: JobSpec) -> Iterator[str]:
    """Workers that cannot share what they are told to share."""
    if not spec.samples:
        return
    sampler, learner = spec.resources.sampler, spec.resources.learner
    if 0 < sampler.gpus < 1 and sampler.gpu_memory_utilization > sampler.gpus:
        yield (
            f"resources.sampler.gpu_memory_utilization: {sampler.gpu_memory_utilization:g} is more than the sampler's part of its GPU, "
            f"resources.sampler.gpus: {sampler.gpus:g}, so that vLLM would take memory that others count on; lower it to {sampler.gpus:g}"
        )
    if spec.resources.placement.mode == "dedicated":
        return
    if sampler.gpus + learner.gpus > 1:
        yield (
            f"resources.placement.mode: colocated shares one GPU between a sampler (resources.sampler.gpus: {sampler.gpus:g}) and a learner "
            f"rank (resources.learner.gpus: {learner.gpus:g}), {sampler.gpus + learner.gpus:g} in all; lower them to 1 together, or use dedicated"
        )


def _ranks(spec: JobSpec) -> Iterator[str]:
    """What several learner ranks cannot do, or a single one."""
    learner, batch = spec.resources.learner, spec.schedule.prompts_per_step
    if learner.gradient_reducer != "mean" and learner.ranks < LEAST_ROBUST_RANKS:
        yield (
            f"resources.learner.gradient_reducer: {learner.gradient_reducer} needs at least {LEAST_ROBUST_RANKS} ranks, since with fewer nobody can "
            f"tell which gradient is wrong, and resources.learner.ranks is {learner.ranks}; raise it, or use mean"
        )
    if learner.ranks > batch:
        yield (
            f"resources.learner.ranks: {learner.ranks} is more than the {batch} groups of an optimizer batch (schedule.prompts_per_step), so "
            "that some would have nothing to learn from; lower it"
        )


def _judges(spec: JobSpec) -> Iterator[str]:
    scorer, evaluation = spec.scorer.model, spec.evaluation
    if isinstance(scorer, FunctionScorer) and spec.samples:
        yield from _function("scorer.model.name", scorer.name)
    if isinstance(scorer, PairRMScorer) and scorer.max_source_tokens >= scorer.max_total_tokens:
        yield (
            f"scorer.model.max_source_tokens: {scorer.max_source_tokens} leaves no room for answers in max_total_tokens: "
            f"{scorer.max_total_tokens}; lower it"
        )
    if evaluation.gold is not None:
        yield from _function("evaluation.gold", evaluation.gold)
    if evaluation.prompts is None:
        for key, value in (
            ("evaluation.gold", evaluation.gold),
            ("schedule.early_stop_rounds", spec.schedule.early_stop_rounds),
            ("schedule.max_kl", spec.schedule.max_kl),
        ):
            if value is not None:
                yield f"{key}: {value} needs held-out prompts; add evaluation.prompts, or leave it out"


def offered_functions() -> tuple[str, ...]:
    """Names of the reward functions that installed packages offer."""
    return tuple(sorted({point.name for point in entry_points(group=SCORER_ENTRY_POINTS)}))


def _function(key: str, name: str) -> Iterator[str]:
    offered = offered_functions()
    if name not in offered:
        has = f"it has {one_of(offered)}" if offered else "it has none"
        yield (
            f"{key}: this installation offers no function {name!r}; {has} (packages offer them as entry points of the group "
            f"{SCORER_ENTRY_POINTS})"
        )


def _times(spec: JobSpec) -> Iterator[str]:
    fleet = spec.resources.fleet
    if fleet.lease_seconds < 3 * fleet.heartbeat_seconds:
        yield (
            f"resources.fleet.lease_seconds: {fleet.lease_seconds:g} is less than three heartbeats of {fleet.heartbeat_seconds:g} s, so "
            "workers would leave a controller that is alive; raise it, or lower heartbeat_seconds"
        )
    for place, beta in enumerate(spec.optimizer.betas):
        if not 0 <= beta < 1:
            yield f"optimizer.betas[{place}]: {beta:g} is out of range; it must be at least 0 and less than 1"
