"""Names of series, how busy a worker is, and vLLM's own metrics."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from learner.records import SkipReason, Stage
from workers.activity import Activity
from workers.replay.rows import LedgerCounts
from workers.sampler.vllm_metrics import vllm_metrics
from workers.series import Series, labelled

WORDS = st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1)


@given(
    st.from_regex(r"[a-z:_]+", fullmatch=True), st.dictionaries(st.sampled_from(("worker", "stage", "reason")), WORDS)
)
def test_a_series_is_read_back_from_its_name(metric: str, labels: dict[str, str]) -> None:
    name = labelled(metric, **labels) if labels else metric
    assert Series.read(name) == Series(metric, labels)


@given(st.text(min_size=1))
def test_a_domain_of_any_name_is_a_label(domain: str) -> None:
    assert Series.read(f"win_rate/{domain}") == Series("win_rate", {"domain": domain})


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def seconds(activity: Activity) -> tuple[float, float]:
    metrics = activity.as_metrics()
    return metrics["worker_busy_seconds_total"], metrics["worker_waiting_seconds_total"]


def test_time_is_busy_while_any_piece_of_work_is_in_progress() -> None:
    clock = Clock()
    activity = Activity(clock)
    clock.now += 2
    with activity.busy():
        clock.now += 3
        with activity.busy():
            clock.now += 5
        assert seconds(activity) == (8.0, 2.0), "also in the middle of it"
        clock.now += 1
    clock.now += 4
    assert seconds(activity) == (9.0, 6.0)


@given(st.lists(st.tuples(st.sampled_from(("begin", "end")), st.integers(0, 9))))
def test_busy_and_waiting_are_the_whole_time(steps: list[tuple[str, int]]) -> None:
    clock = Clock()
    activity, running = Activity(clock), []
    for what, passed in steps:
        clock.now += passed
        if what == "begin":
            running.append(activity.busy())
            running[-1].__enter__()
        elif running:
            running.pop().__exit__(None, None, None)
    assert sum(seconds(activity)) == clock.now - 100


def test_vllms_metrics_are_summed_over_its_own_labels_and_others_are_left_out() -> None:
    registry = CollectorRegistry()
    done = Counter("vllm:request_success", "", ["finished_reason"], registry=registry)
    done.labels("stop").inc(3)
    done.labels("length").inc(2)
    Gauge("vllm:kv_cache_usage_perc", "", ["engine"], registry=registry).labels("0").set(0.25)
    Histogram("vllm:e2e_request_latency_seconds", "", registry=registry).observe(1.5)
    Gauge("vllm:lora_requests_info", "", registry=registry).set(1)
    assert vllm_metrics(registry) == {
        "vllm:request_success_total": 5.0,
        "vllm:kv_cache_usage_perc": 0.25,
        "vllm:e2e_request_latency_seconds_sum": 1.5,
        "vllm:e2e_request_latency_seconds_count": 1.0,
    }
    assert vllm_metrics(CollectorRegistry()) == {}


def test_the_accounts_counters_add_up_to_what_was_admitted() -> None:
    counts = LedgerCounts(
        admitted=20,
        granted=1,
        ready=2,
        leased=3,
        consumed=4,
        expired=5,
        skipped={SkipReason.TIE: 2},
        failed={Stage.SCORER: 3},
    )
    metrics = counts.as_metrics()
    assert metrics["groups_failed_total{stage=scorer}"] == 3 and metrics["groups_failed_total{stage=sampler}"] == 0
    assert metrics.pop("groups_admitted_total") == sum(metrics.values()) + counts.remaining == 20
