"""The report of a job: its curves, its table of versions, and answers before and after, in one HTML file that loads nothing."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from services.jobs.records import JobEvent, JobRecord, MetricPoint, VersionRecord
from services.jobs.store import JobStore
from services.jobs.transfer import IN_WORDS, JobTransfer, averages_in_words, job_transfer

CURVES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("KL to version 0", ("kl_nats",), "nats an answer"),
    ("Answer length", ("answer_length_tokens",), "tokens"),
    ("Loss", ("loss",), ""),
    ("Accuracy on training pairs", ("accuracy",), "share"),
    ("Gradient norm", ("gradient_norm", "slow_gradient_norm"), ""),
    ("Fast adapter's answers against the slow one's", ("fast_vs_slow_win_rate",), "win rate"),
    ("Throughput", ("pairs_per_second",), "pairs a second"),
    ("Preference signal", ("position_bias", "tie_share", "intransitive_share", "identical_share"), ""),
)
"""Title, metric names, unit; the win rates have a picture of their own."""

WIN_RATES = (
    ("win_rate", "by the scorer"),
    ("length_controlled_win_rate", "by the scorer, length-controlled"),
    ("gold_win_rate", "by the gold judge"),
    ("gold_length_controlled_win_rate", "by the gold judge, length-controlled"),
)
"""Metric name and label of the win rates in one picture, where a version has them."""

COLUMNS = (
    ("win_rate", "win rate", "{:.1%}"),
    ("length_controlled_win_rate", "length-controlled", "{:.1%}"),
    ("gold_win_rate", "gold win rate", "{:.1%}"),
    ("tie_rate", "ties", "{:.1%}"),
    ("kl_nats", "KL (nats)", "{:.2f}"),
    ("answer_length_tokens", "length (tokens)", "{:.1f}"),
    ("truncated_share", "cut off", "{:.1%}"),
    ("pairs_per_second", "pairs/s", "{:.1f}"),
)
"""Metric name, heading and format of the table of versions."""

LONGEST_LABEL = 28
"""Characters of a domain's name that a picture has room for."""


def version_rows(versions: Sequence[VersionRecord]) -> list[dict[str, str]]:
    """The evaluated versions as a table: heading to text. An interval stands beside each win rate."""
    rows = []
    for record in versions:
        if "win_rate" not in record.metrics:
            continue
        row = {"version": f"v{record.version}{' (best)' if record.best else ''}"}
        for name, heading, form in COLUMNS:
            value = record.metrics.get(name)
            text = "" if value is None else form.format(value)
            low, high = record.metrics.get(f"{name}_low"), record.metrics.get(f"{name}_high")
            if text and low is not None and high is not None:
                text += f" [{low:.1%}, {high:.1%}]"
            row[heading] = text
        rows.append(row)
    return [{heading: text for heading, text in row.items() if any(r[heading] for r in rows)} for row in rows]


def examples(events: Sequence[JobEvent], version: int | None) -> list[Mapping[str, Any]]:
    """The held-out prompts that an evaluation showed, with version 0's answers and those of ``version``."""
    for event in reversed(events):
        if event.kind == "evaluated" and event.data.get("version") == version:
            shown = event.data.get("examples")
            return [dict(example) for example in shown if isinstance(example, dict)] if isinstance(shown, list) else []
    return []


def all_events(store: JobStore, job_id: str) -> list[JobEvent]:
    """A job's whole event log."""
    events: list[JobEvent] = []
    while page := store.events_after(job_id, events[-1].seq if events else 0):
        events += page
    return events


def write_report(store: JobStore, job_id: str, path: Path) -> Path:
    """Write a job's report, and return its path."""
    job = store.get(job_id)
    versions = store.versions(job_id)
    series = store.series(job_id)
    events = all_events(store, job_id)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("services.jobs"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html").render(
        job=job,
        rows=version_rows(versions),
        pictures=[*_win_rates(versions), *_transfer(job_transfer(job, versions)), *_curves(series)],
        examples=[readable(example) for example in examples(events, _shown_version(job, versions))],
        events=[event for event in events if event.kind != "evaluated"][-200:],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _shown_version(job: JobRecord, versions: Sequence[VersionRecord]) -> int | None:
    return job.best_version if job.best_version is not None else max((v.version for v in versions), default=None)


def readable(example: Mapping[str, Any]) -> dict[str, str]:
    """An example as three texts: prompt, before, after."""
    turns = example["prompt"]["messages"]
    prompt = "\n".join("".join(part["text"] for part in turn["content"]) for turn in turns)
    return {"prompt": prompt, "before": str(example["before"]), "after": str(example["after"])}


def _win_rates(versions: Sequence[VersionRecord]) -> list[str]:
    """The picture of win rates, where a version was evaluated."""
    if not any("win_rate" in version.metrics for version in versions):
        return []
    figure, axes = _figure("Win rate against version 0 (95 % interval)", "share")
    for name, label in WIN_RATES:
        points = [
            (v.version, v.metrics[name], v.metrics[f"{name}_low"], v.metrics[f"{name}_high"])
            for v in versions
            if v.metrics.get(name) is not None
        ]
        if points:
            x, mean, low, high = (list(column) for column in zip(*points, strict=True))
            axes.plot(x, mean, marker="o", label=label, linestyle="--" if "length_controlled" in name else "-")
            axes.fill_between(x, low, high, alpha=0.15)
    axes.axhline(0.5, color="grey", linewidth=0.8, linestyle="--")
    axes.set_ylim(0, 1)
    axes.set_xlabel("version")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return [_svg(figure)]


def _transfer(transfer: JobTransfer | None) -> list[str]:
    """Each judge's win rates by domain, as a heat map with the numbers in its cells, where a job learns domain after domain."""
    if transfer is None:
        return []
    pictures = []
    for judge, matrix in transfer.matrices.items():
        rows = [[float("nan") if rate is None else rate for rate in row] for row in matrix.rows]
        figure, axes = _figure(f"Win rate by domain, {IN_WORDS[judge]}", "")
        axes.grid(visible=False)
        axes.imshow(rows, cmap="RdBu", vmin=0, vmax=1, aspect="auto")
        columns, lines = ([_shortened(name) for name in names] for names in (matrix.domains, transfer.row_names))
        # a domain's name is plain text, also where it has a dollar sign
        axes.set_xticks(range(len(columns)), columns, fontsize=7, parse_math=False)
        axes.set_yticks(range(len(rows)), lines[: len(rows)], fontsize=7, parse_math=False)
        for t, row in enumerate(matrix.rows):
            for column, rate in enumerate(row):
                if rate is not None:
                    colour = "white" if abs(rate - 0.5) > 0.3 else "black"  # both ends of the map are dark
                    axes.text(column, t, f"{rate:.0%}", ha="center", va="center", fontsize=8, color=colour)
        axes.set_xlabel("\n".join(averages_in_words(matrix).split(", ")), fontsize=7)
        pictures.append(_svg(figure))
    return pictures


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"


def _curves(series: Mapping[str, Sequence[MetricPoint]]) -> list[str]:
    pictures = []
    for title, names, unit in CURVES:
        found = {name: series[name] for name in names if name in series}
        if not found:
            continue
        figure, axes = _figure(title, unit)
        for name, points in found.items():
            steps = [
                point.learner_step
                if point.learner_step is not None
                else point.version
                if point.version is not None
                else i
                for i, point in enumerate(points)
            ]
            axes.plot(steps, [point.value if point.value is not None else float("nan") for point in points], label=name)
        axes.set_xlabel("optimizer step" if next(iter(found.values()))[0].learner_step is not None else "version")
        if len(found) > 1:
            axes.legend(fontsize=7)
        pictures.append(_svg(figure))
    return pictures


def _figure(title: str, unit: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.0), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10)
    axes.set_ylabel(unit)
    axes.grid(alpha=0.25)
    return figure, axes


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
