"""Self-play in matrix games with known solutions: which method reaches the von Neumann winner, and how fast. A minute on one core.

    .venv/bin/python benchmarks/matrix_games.py

Everything is exact (`learner/games.py`): no sampling, no network. The gap is the duality gap, 0 only at a von Neumann winner. Tables are printed; a
picture (``figure.svg``, ``figure.png``) and every figure in it (``figures.json``) are written under ``--out``.

* SPPO's average policy over T rounds, η chosen for T, against the multiplicative-weights bound √(2 L / T).
* A Bradley-Terry reward fitted once to uniform comparisons, and iterated DPO against the fixed start, at the β that suits each best.
* DPO against the previous iterate beside SPPO with η = 4/β: over short times the distance of the trajectories, in long games the gap of the average.
  The preferences' strength scales P − ½; time runs as η · strength · rounds, and gaps are divided by the strength.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from learner import games
from learner.preference import Array

STAKES = (0.9, 0.3, 0.5)
LOPSIDED = np.log([0.98, 0.01, 0.01])
BETAS = np.geomspace(0.02, 50, 81)
TIME = 24.0
"""Strength × η × rounds of the short comparison: a good three turns round the winner."""


def all_games() -> dict[str, Array]:
    """The games by name. Of the random ones, those are taken whose winner mixes over three answers and over five."""
    result = {"rock-paper-scissors": games.weighted_rock_paper_scissors(STAKES)}
    for support in (3, 5):
        for seed in range(1000):
            preferences = games.random_preferences(5, 0.9, np.random.default_rng(seed))
            if (games.von_neumann_winner(preferences) > 0.02).sum() == support:
                result[f"random, {support} of 5 mixed"] = preferences
                break
    return result | {"Bradley-Terry": games.bradley_terry_preferences(np.linspace(1, -1, 5))}


def sppo_rates(preferences: Array, horizons: Array) -> dict[str, Any]:
    """Gap of SPPO's average at each horizon, all horizons played at once with their own η."""
    start = games.uniform(len(preferences))
    eta = games.best_eta(horizons, start)
    starts = np.broadcast_to(start, (len(horizons), len(start)))
    policies = games.play(lambda policy: games.sppo_step(preferences, policy, eta), starts, int(horizons[-1]))
    averages = np.array([policies[:t, row].mean(axis=0) for row, t in enumerate(horizons)])
    gaps = games.duality_gap(preferences, averages)
    bounds = games.sppo_gap_bound(horizons, eta, start)
    return {
        "horizons": horizons,
        "gaps": gaps,
        "bounds": bounds,
        "last_iterate_gaps": games.duality_gap(preferences, policies[horizons - 1, np.arange(len(horizons))]),
        "slope": games.log_log_slope(horizons, gaps),
        "largest_share_of_bound": float((gaps / bounds).max()),
        "distance_to_winner": float(games.distance(averages[-1], games.von_neumann_winner(preferences))),
    }


def over_beta(preferences: Array, rounds: int) -> dict[str, Any]:
    """Gaps of the reward fitted once and of iterated DPO with a fixed reference, for every β at once."""
    start = games.uniform(len(preferences))
    once = np.exp(games.kl_regularised_optimum(start, games.bradley_terry_rewards(preferences, np.exp(start)), BETAS))
    starts = np.broadcast_to(start, (len(BETAS), len(start)))
    fixed = games.play(lambda policy: games.dpo_step(preferences, policy, BETAS, start), starts, rounds)
    found = {
        "betas": BETAS,
        "fitted_once": games.duality_gap(preferences, once),
        "fixed_last": games.duality_gap(preferences, fixed[rounds * 3 // 4 :]).mean(axis=0),
        "fixed_average": games.duality_gap(preferences, fixed.mean(axis=0)),
        "fixed_average_half_way": games.duality_gap(preferences, fixed[: rounds // 2].mean(axis=0)),
    }
    return found | {"rounds": rounds, "start": float(games.duality_gap(preferences, np.exp(start)))}


def pair_of_runs(preferences: Array, start: Array, eta: float, rounds: int) -> tuple[Array, Array]:
    """Iterates of DPO against the previous iterate (β = 4/η), and of SPPO."""
    dpo = games.play(lambda policy: games.dpo_step(preferences, policy, 4 / eta), start, rounds)
    return dpo, games.play(lambda policy: games.sppo_step(preferences, policy, eta), start, rounds)


def trajectory_distances(etas: list[float], strengths: list[float]) -> list[dict[str, float]]:
    """The largest total variation between both runs' iterates over `TIME`, from the uniform start."""
    found = []
    for strength in strengths:
        preferences = games.weakened(games.weighted_rock_paper_scissors(STAKES), strength)
        for eta in etas:
            dpo, sppo = pair_of_runs(preferences, games.uniform(3), eta / strength, round(TIME / eta))
            largest = float(games.distance(dpo, sppo).max())
            found.append({"strength": strength, "eta_times_strength": eta, "distance": largest})
    return found


def long_games(strengths: list[float], eta: float, rounds: int) -> list[dict[str, Any]]:
    """Gap of both averages over many rounds from a lopsided start, with SPPO's bound; all divided by the strength."""
    found = []
    shown = np.unique(np.geomspace(10, rounds, 120).astype(int))
    for strength in strengths:
        preferences = games.weakened(games.weighted_rock_paper_scissors(STAKES), strength)
        runs = pair_of_runs(preferences, LOPSIDED, eta / strength, rounds)
        dpo, sppo = (games.duality_gap(preferences, games.running_average(run))[shown - 1] / strength for run in runs)
        bound = games.sppo_gap_bound(shown, eta / strength, LOPSIDED, strength) / strength
        found.append({"strength": strength, "rounds": shown, "dpo": dpo, "sppo": sppo, "sppo_bound": bound})
    return found


def draw(figures: dict[str, Any], preferences: Array, out: Path) -> None:
    """The picture, six panels."""
    figure = Figure(figsize=(15, 8.4), layout="constrained")
    panels = figure.subplots(2, 3).ravel()
    titles = (
        "SPPO: gap of the average policy (dashed: bound)",
        "Rock-paper-scissors: iterates and averages",
        "Rock-paper-scissors: gap against β",
        "Random, 5 of 5 mixed: gap against β",
        "DPO against the previous iterate: distance to SPPO, η = 4/β",
        "Long games, lopsided start: gap of the average / strength",
    )
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.25)
    for colour, (name, found) in enumerate(figures["sppo"].items()):
        panels[0].loglog(found["horizons"], found["gaps"], color=f"C{colour}", label=f"{name}: {found['slope']:.2f}")
        panels[0].loglog(found["horizons"], found["bounds"], color=f"C{colour}", linestyle="--", linewidth=0.8)
    panels[0].set_xlabel("rounds T")
    simplex(panels[1], preferences)
    for axes, name in ((panels[2], "rock-paper-scissors"), (panels[3], "random, 5 of 5 mixed")):
        found = figures["over_beta"][name]
        axes.loglog(BETAS, found["fitted_once"], label="Bradley-Terry fitted once")
        axes.loglog(BETAS, found["fixed_last"], label="DPO, fixed reference: last quarter's mean")
        axes.loglog(BETAS, found["fixed_average"], label="DPO, fixed reference: average")
        axes.axhline(figures["sppo"][name]["gaps"][-1], color="black", linestyle=":", label="SPPO: average, longest T")
        axes.set_xlabel("β")
    for eta in sorted({point["eta_times_strength"] for point in figures["trajectory_distances"]}):
        points = [point for point in figures["trajectory_distances"] if point["eta_times_strength"] == eta]
        x, y = [point["strength"] for point in points], [point["distance"] for point in points]
        panels[4].loglog(x, y, marker="o", label=f"η · strength = {eta:g}")
    panels[4].set_xlabel("strength of the preferences")
    for colour, found in enumerate(figures["long_games"]):
        label = f"strength {found['strength']:g}"
        panels[5].loglog(found["rounds"], found["dpo"], color=f"C{colour}", label=f"DPO, {label}")
        panels[5].loglog(found["rounds"], found["sppo"], color=f"C{colour}", linestyle=":", label=f"SPPO, {label}")
    panels[5].loglog(found["rounds"], found["sppo_bound"], color="black", linestyle="--", label="SPPO's bound")
    panels[5].set_xlabel("rounds")
    for axes in panels:
        axes.legend(fontsize=7)
    figure.savefig(out / "figure.svg", metadata={"Date": None})
    figure.savefig(out / "figure.png", dpi=130)


def simplex(axes: Any, preferences: Array) -> None:
    """Policies over three answers as points in a triangle."""
    corners = np.array([[0, 0], [1, 0], [0.5, np.sqrt(0.75)]])
    axes.fill(*corners.T, facecolor="none", edgecolor="grey")
    start = games.uniform(3)
    dpo, sppo = pair_of_runs(preferences, start, 0.08, 600)
    rewards = games.bradley_terry_rewards(preferences, np.exp(start))
    once = np.exp(games.kl_regularised_optimum(start, rewards, np.geomspace(0.02, 50, 300)))
    axes.plot(*(sppo @ corners).T, linewidth=0.8, label="SPPO, iterates")
    axes.plot(*(dpo @ corners).T, linewidth=0.8, linestyle="--", label="DPO, previous iterate")
    axes.plot(*(games.running_average(sppo) @ corners).T, color="black", label="SPPO, average")
    axes.plot(*(once @ corners).T, label="Bradley-Terry fitted once, every β")
    axes.plot(*(games.von_neumann_winner(preferences) @ corners), "*", color="red", markersize=12, label="winner")
    axes.set_aspect("equal")
    axes.set_axis_off()


def tables(figures: dict[str, Any]) -> list[Table]:
    """What is printed."""
    rates = Table(title="SPPO: duality gap of the average policy, η = √(8 L / T)")
    for heading in ("game", "T", "gap", "bound", "gap / bound, largest", "slope", "last iterate", "TV to winner"):
        rates.add_column(heading)
    for name, found in figures["sppo"].items():
        cells = [f"{found['horizons'][-1]}", *(f"{found[key][-1]:.4f}" for key in ("gaps", "bounds"))]
        cells += [f"{found['largest_share_of_bound']:.2f}", f"{found['slope']:.3f}"]
        rates.add_row(name, *cells, f"{found['last_iterate_gaps'][-1]:.4f}", f"{found['distance_to_winner']:.4f}")
    betas = Table(title="The least gap over all β (start: uniform)")
    for heading in ("game", "start", "fitted once", "DPO, fixed reference: last", "its average", "SPPO"):
        betas.add_column(heading)
    for name, found in figures["over_beta"].items():
        cells = [f"{found[key].min():.4f}" for key in ("fitted_once", "fixed_last", "fixed_average")]
        betas.add_row(name, f"{found['start']:.4f}", *cells, f"{figures['sppo'][name]['gaps'][-1]:.4f}")
    near = Table(title="DPO against the previous iterate and SPPO with η = 4/β: largest total variation on the way")
    for heading in ("strength", "η · strength", "distance"):
        near.add_column(heading)
    for point in figures["trajectory_distances"]:
        near.add_row(*(f"{point[key]:.3g}" for key in ("strength", "eta_times_strength", "distance")))
    far = Table(title="Long games from a lopsided start: gap of the average / strength")
    for heading in ("strength", "rounds", "DPO", "SPPO", "SPPO's bound"):
        far.add_column(heading)
    for found in figures["long_games"]:
        cells = [f"{found['rounds'][-1]}", *(f"{found[key][-1]:.4f}" for key in ("dpo", "sppo", "sppo_bound"))]
        far.add_row(f"{found['strength']:g}", *cells)
    return [rates, betas, near, far]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--horizon", type=int, default=16384, help="SPPO's longest T")
    parser.add_argument("--rounds", type=int, default=1000, help="of iterated DPO with a fixed reference")
    parser.add_argument("--long-rounds", type=int, default=20000, help="of the long games")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/matrix-games"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    matrices = all_games()
    horizons = np.unique(np.geomspace(16, arguments.horizon, 41).round().astype(int))
    figures = {
        "preferences": matrices,
        "winners": {name: games.von_neumann_winner(matrix) for name, matrix in matrices.items()},
        "sppo": {name: sppo_rates(matrix, horizons) for name, matrix in matrices.items()},
        "over_beta": {name: over_beta(matrix, arguments.rounds) for name, matrix in matrices.items()},
        "trajectory_distances": trajectory_distances([0.2, 0.05, 0.0125], [0.05, 0.1, 0.2, 0.5, 1.0]),
        "long_games": long_games([1.0, 0.3, 0.1], 0.1, arguments.long_rounds),
    }
    console = Console(width=140)
    for table in tables(figures):
        console.print(table)
    text = json.dumps(figures, indent=1, default=lambda value: value.tolist())
    (arguments.out / "figures.json").write_text(text + "\n", encoding="utf-8")
    draw(figures, matrices["rock-paper-scissors"], arguments.out)
    console.print(f"Written: {arguments.out}/figure.svg, figure.png, figures.json")


if __name__ == "__main__":
    main()
