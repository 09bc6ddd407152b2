"""The reliability diagram of a trained scorer."""

from __future__ import annotations

from pathlib import Path

from workers.scorers.training_config import ScorerReport


def plot_reliability(report: ScorerReport, path: Path) -> None:
    """Draw how often the labels agree with the scorer, against how sure it is, as a PNG, with the number of pairs in each bin below."""
    # The object interface needs no display and leaves pyplot's global state alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    curve, counts = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    filled = [
        (b.predicted, b.observed) for b in report.calibration if b.predicted is not None and b.observed is not None
    ]
    curve.plot([0.5, 1], [0.5, 1], linestyle="--", color="0.6", label="perfectly calibrated")
    curve.plot([p for p, _ in filled], [o for _, o in filled], marker="o", label="this scorer")
    curve.set(ylabel="labels agree", xlim=(0.5, 1), ylim=(0, 1))
    curve.set_title(f"{report.held_out_pairs} held-out pairs, calibration error {report.calibration_error:.3f}")
    curve.legend(loc="lower right")
    width = report.calibration[0].high - report.calibration[0].low
    counts.bar(
        [b.low for b in report.calibration],
        [b.pairs for b in report.calibration],
        width=width,
        align="edge",
        edgecolor="white",
    )
    counts.set(xlabel="predicted probability that the preferred answer is better", ylabel="pairs")
    figure.savefig(str(path), dpi=120, metadata={"Software": ""})
