"""Every solver on every grid at several costs: the tables and plots of docs/choose-solver.md.

    python benchmarks/choose_solver.py                          the exact mixtures, and runs/demo/model if it is there
    python benchmarks/choose_solver.py --bundle runs/x/model    another model
    python benchmarks/choose_solver.py --write                  also put tables and pictures into the page

All solvers of the registry are run with their own default values, each on several grids, with the number of steps that
makes at most so many evaluations of the model, counted and not believed. Two questions:

    trajectories   deterministic solvers: how far is a sample from where the probability flow leads from the same
                   start? Median over samples of the root mean square over elements; the flow is known finely.
    law            all solvers: sliced Wasserstein distance (2-Wasserstein, 128 directions) between the samples and a
                   sample of the law itself: 4,000 draws of the mixture, or of the model's flow from other starts.

A cell is the best of the grids, chosen with hindsight, and names the grid. Guidance is 1.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from sfumato.bundle import load
from sfumato.denoisers import GaussianMixture
from sfumato.errors import SfumatoError
from sfumato.evaluation.plots import COLOURS, LINE, SOFT, as_png, drawing
from sfumato.noise import Noise
from sfumato.processes import Cosine, Gaussian, Linear
from sfumato.solvers import GRIDS, SOLVERS, Driver, FlowGrid, Heun, Solver, build_grid, sample, steps_within

COSTS = (4, 6, 8, 10, 15, 20, 30, 50)
PAGE = Path(__file__).parents[1] / "docs" / "choose-solver.md"
SHORT = {
    "angle": "a",
    "uniform": "u",
    "quadratic": "q",
    "cosine": "c",
    "flow": "f",
    "log-snr": "l",
    "karras": "k",
}


@dataclass
class Problem:
    """A denoiser with its flow and its law known finely. shape: of a sample. like: dtype of the samples."""

    name: str
    title: str
    denoiser: object
    shape: tuple[int, ...]
    count: int
    fine: int
    like: torch.Tensor
    condition: dict | None = None
    exact: torch.Tensor | None = None  # draws of the law, if they can be had without the flow
    fresh: object = None  # seed -> as many draws of the law as samples
    floor: float = 0.0
    ends: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def draw(self, solver, levels, first: int = 0, count: int | None = None, denoiser=None):
        count = count or self.count
        condition = None if self.condition is None else {k: v[:count] for k, v in self.condition.items()}
        noise = Noise(0, range(first, first + count))
        asked = {"solver": solver, "levels": levels, "condition": condition, "like": self.like}
        return sample(denoiser or self.denoiser, noise, self.shape, **asked)

    def prepare(self):
        levels = FlowGrid(rho=1.5).levels(self.denoiser.process, self.fine)
        self.ends = self.draw(Heun(), levels).flatten(1).double()
        if self.exact is None:
            self.exact = self.draw(Heun(), levels, self.count).flatten(1).double()
        # the most that samples of the law itself are away: what is nearer than that cannot be told from it
        others = [self.ends] if self.fresh is None else [self.fresh(seed) for seed in range(10, 20)]
        self.floor = max(sliced(other, self.exact) for other in others)
        return self


def sliced(x, y, directions: int = 128):
    """Sliced 2-Wasserstein distance of a sample to another, as large or larger, at the quantiles of the first."""
    way = Noise(99, 1).normal(torch.empty(1, x.shape[1] * directions, dtype=torch.float64))
    way = way.reshape(x.shape[1], directions)
    way = way / way.norm(dim=0)
    place = ((torch.arange(len(x)) + 0.5) / len(x) * len(y)).long()
    return float(((x @ way).sort(0).values - (y @ way).sort(0).values[place]).square().mean().sqrt())


class Counting:
    def __init__(self, denoiser):
        self.denoiser, self.process, self.calls = denoiser, denoiser.process, 0

    def __call__(self, x_t, t, condition=None):
        self.calls += 1
        return self.denoiser(x_t, t, condition)


def ring() -> Problem:
    """Eight narrow bumps on a circle: a few directions, sharp decisions."""
    angle = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    means = torch.stack([angle.cos(), angle.sin()], 1)
    law = GaussianMixture(Gaussian(Linear(), sigma_data=0.71), means, torch.full((8, 2), 0.08**2))
    count = 512
    return Problem("ring", "ring: 8 bumps in 2 dimensions, linear schedule", law, (2,), count, 400, law.means,
                   exact=law.sample(Noise(5, 4000)), fresh=lambda seed: law.sample(Noise(seed, count)))  # fmt: skip


def hills() -> Problem:
    """Ten stretched bumps in 64 dimensions, with standard deviations from 0.03 to 1.8: nearer to what data are like."""
    like = torch.empty(10, 64, dtype=torch.float64)
    means = 0.6 * Noise(3, 10).normal(like)
    turns = torch.linalg.qr(Noise(4, 10).normal(torch.empty(10, 64, 64, dtype=torch.float64))).Q
    sizes = torch.linspace(math.log(1.8), math.log(0.03), 64, dtype=torch.float64).exp().expand(10, 64)
    covariances = (turns * sizes.square()[:, None]) @ turns.mT
    law = GaussianMixture(Gaussian(Cosine(), sigma_data=1.0), means, covariances)
    count = 256
    return Problem("hills", "hills: 10 bumps in 64 dimensions, cosine schedule", law, (64,), count, 200, law.means,
                   exact=law.sample(Noise(5, 4000)), fresh=lambda seed: law.sample(Noise(seed, count)))  # fmt: skip


def of_bundle(folder: Path) -> Problem:
    """A trained model; its law is what its own flow makes of it."""
    model = load(folder)
    name = model.info.get("recipe", {}).get("name", folder.name)
    count = 64
    labels = {"label": torch.arange(2 * count) % len(model.classes)} if model.classes else None
    weights = next(model.denoiser.parameters())
    return Problem(
        "model", f"{name}: a trained model", model.denoiser, model.domain.shape, count, 100, weights, labels
    )


def within(solver: Solver, grid, problem: Problem, cost: int):
    """The levels of as many steps as so many evaluations pay for, and how many those are; or None."""
    try:
        steps = steps_within(solver, cost)
        levels = grid.levels(problem.denoiser.process, steps)
        counting = Counting(problem.denoiser)
        problem.draw(solver, levels, count=1, denoiser=counting)
    except SfumatoError:
        return None
    assert counting.calls <= cost, (solver.kind, counting.calls, cost)
    return levels, counting.calls


def measure(problem: Problem, grids, costs, say=print):
    """A row for each solver, grid and cost that can be run."""
    rows = []
    for kind, cls in SOLVERS.items():
        try:
            solver = cls()
        except (SfumatoError, TypeError) as error:
            say(f"  {kind} has no default values ({error}): left out")
            continue
        if isinstance(solver, Driver) or not isinstance(problem.denoiser.process, solver.serves):
            continue  # those go by a tolerance, or solve another kind of process
        for name in grids:
            for cost in costs:
                try:
                    found = within(solver, build_grid(name), problem, cost)
                    if found is None:
                        continue
                    x = problem.draw(solver, found[0]).flatten(1).double()
                except SfumatoError as error:
                    say(f"  {kind} on {name} at {cost}: {error}")
                    continue
                row = {"solver": kind, "grid": name, "cost": cost, "used": found[1]}
                row |= {"stochastic": bool(solver.stochastic), "law": sliced(x, problem.exact)}
                if not solver.stochastic:
                    each = (x - problem.ends).square().mean(1).sqrt()
                    row |= {"median": float(each.median()), "rms": float(each.square().mean().sqrt())}
                rows.append(row)
        say(f"  {problem.name}: {kind} done")
    return rows


def best(rows, solver: str, cost: int, figure: str):
    mine = [
        r
        for r in rows
        if r["solver"] == solver and r["cost"] == cost and figure in r and math.isfinite(r[figure])
    ]
    return min(mine, key=lambda r: r[figure], default=None)


def table(rows, figure: str, costs, floor: float = 0.0) -> str:
    """Solvers by costs in Markdown: the best grid's figure and its letter, the best solver of a cost in bold.

    What is not above the floor is a dot: smaller figures there are luck, and one of six grids always has some.
    """
    kinds = [
        kind
        for kind in dict.fromkeys(r["solver"] for r in rows)
        if any(figure in r for r in rows if r["solver"] == kind)
    ]
    lines = ["| solver | " + " | ".join(map(str, costs)) + " |", "|---" * (len(costs) + 1) + "|"]
    cells = {(kind, cost): best(rows, kind, cost, figure) for kind in kinds for cost in costs}
    least = {
        cost: min((c[figure] for (_, n), c in cells.items() if n == cost and c), default=None)
        for cost in costs
    }
    for kind in kinds:
        stochastic = any(r["stochastic"] for r in rows if r["solver"] == kind)
        line = []
        for cost in costs:
            cell = cells[kind, cost]
            text = "–" if cell is None else f"{cell[figure]:.2g} {SHORT.get(cell['grid'], cell['grid'])}"
            if cell and cell[figure] <= floor:
                line.append("·")
                continue
            line.append(f"**{text}**" if cell and cell[figure] == least[cost] else text)
        lines.append(f"| `{kind}`{' *' if stochastic else ''} | " + " | ".join(line) + " |")
    return "\n".join(lines)


def plot(problem: Problem, rows, costs) -> bytes:
    """Error of the trajectories and distance of the law against cost; those that lead are named, others are grey."""
    with drawing(9.6, 4.2) as figure:
        figure.suptitle(problem.title, x=0.012, ha="left", fontsize=11.5)
        for axes, what, title in zip(
            figure.subplots(1, 2),
            ("median", "law"),
            ("Distance from the flow's end  (median)", "Distance from the law  (sliced Wasserstein)"),
            strict=True,
        ):
            kinds = [
                k
                for k in dict.fromkeys(r["solver"] for r in rows)
                if any(what in r for r in rows if r["solver"] == k)
            ]

            def rank(kind, what=what):
                cells = [best(rows, kind, cost, what) for cost in costs]
                # average of logs over the costs that all have: geometric, so that no one cost decides
                return np.mean([math.log(c[what] + 1e-12) for c in cells if c] or [math.inf])

            ordered = sorted(kinds, key=rank)
            for kind in reversed(ordered):
                place = ordered.index(kind)
                cells = [(cost, best(rows, kind, cost, what)) for cost in costs]
                points = [(cost, c[what]) for cost, c in cells if c]
                dashed = any(r["stochastic"] for r in rows if r["solver"] == kind)
                colour = COLOURS[place] if place < len(COLOURS) else LINE
                label = kind + (" (stochastic)" if dashed else "") if place < len(COLOURS) else None
                axes.plot(*zip(*points, strict=True), color=colour, linestyle="--" if dashed else "-", marker="o",
                          markersize=3, label=label)  # fmt: skip
            if what == "law":
                axes.axhline(
                    problem.floor,
                    color=SOFT,
                    linewidth=1,
                    linestyle=":",
                    label="samples of the law itself",
                )
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xticks(list(costs), [str(c) for c in costs])
            axes.set_xticks([], minor=True)
            axes.set_xlabel("evaluations of the model")
            axes.set_title(title)
            handles, labels = axes.get_legend_handles_labels()
            axes.legend(handles[::-1], labels[::-1], loc="best")
        return as_png(figure)


def page(text: str, mark: str, content: str) -> str:
    """The page with what stands between its markers replaced."""
    first, last = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    if first not in text or last not in text:
        raise SystemExit(f"{PAGE} has no markers {first} and {last}")
    return text[: text.index(first) + len(first)] + f"\n\n{content}\n\n" + text[text.index(last) :]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=Path("runs/demo/model"), help="a trained model")
    parser.add_argument(
        "--problems", nargs="+", choices=("ring", "hills", "model"), default=["ring", "hills", "model"]
    )
    parser.add_argument("--costs", type=int, nargs="+", default=list(COSTS))
    parser.add_argument("--grids", nargs="+", default=list(GRIDS), help="grids to try each solver on")
    parser.add_argument(
        "--write", action="store_true", help="put tables and pictures into docs/choose-solver.md"
    )
    parser.add_argument("--json", type=Path, help="also write all numbers to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)  # the matrices are small
    problems = [make() for name, make in (("ring", ring), ("hills", hills)) if name in given.problems]
    if "model" in given.problems and (given.bundle / "bundle.json").is_file():
        problems.append(of_bundle(given.bundle))
    elif "model" in given.problems:
        print(f"{given.bundle} is not there: only the mixtures are run")
    everything = {}
    for problem in problems:
        problem.prepare()
        rows = everything[problem.name] = measure(problem, given.grids, given.costs)
        content = f"![Error against cost: {problem.title}](images/solvers-{problem.name}.png)\n\n"
        content += "Distance from the flow's end (median):\n\n" + table(rows, "median", given.costs)
        content += "\n\nDistance from the law (sliced Wasserstein), all solvers; "
        content += f"a dot: no farther than samples of the law itself, {problem.floor:.2g}:\n\n"
        content += table(rows, "law", given.costs, problem.floor)
        print(f"\n{problem.title}\n\n{content}\n")
        if given.write:
            (PAGE.parent / "images" / f"solvers-{problem.name}.png").write_bytes(
                plot(problem, rows, given.costs)
            )
            PAGE.write_text(page(PAGE.read_text(), problem.name, content))
    if given.json:
        given.json.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
