"""`sfumato tune`."""

from __future__ import annotations

from pathlib import Path


def tune(
    bundle: Path,
    /,
    *,
    steps: int = 8,
    guidance: str | None = None,
    trajectories: int = 300,
    seconds: float = 300.0,
    seed: int = 0,
) -> int:
    """Fit a solver of few steps to a model, from trajectories of its own, and keep it in the model's folder.

    `sfumato sample` then uses it for that number of steps at that guidance. It is kept only if it is closer to the
    ends of held-out trajectories than every untuned solver it is compared with; otherwise nothing is changed.

    Parameters
    ----------
    bundle
        The model's folder.
    steps
        How many steps, each one evaluation of the model.
    guidance
        Classifier-free weight to tune for; default: the model's own.
    trajectories
        How many are made at most. A quarter of them is held out.
    seconds
        How long it may take; where that is short for a slow model, fewer trajectories are made.
    seed
        Another seed gives other trajectories.
    """
    from .. import bundle as bundles
    from ..files import check_folder
    from ..solvers.tuning import Effort
    from .show import Bar, console, duration, table

    model = bundles.load(bundle)
    check_folder(bundle)
    with Bar("tuning") as bar:

        def told(what: str, done: int, total: int) -> None:
            bar.what = what
            bar.update(done, total, what)

        found = model.tune(
            steps,
            guidance=guidance,
            trajectories=trajectories,
            seed=seed,
            effort=Effort(seconds=seconds),
            progress=told,
        )
    rows = [
        (name, f"{e.median:.4f}", f"{e.low:.4f} to {e.high:.4f}", f"{e.mean:.4f}", f"{e.rms:.4f}")
        for name, e in sorted(found.errors.items(), key=lambda item: item[1].median)
    ]
    at = f"{steps} evaluations, guidance {found.solver.guidance:g}"
    table(
        f"Error at {at}, over {found.held_out} held-out trajectories",
        ["solver", "median", "95 % interval", "mean", "RMS"],
        rows,
    )
    spent = f"fitted to {found.fitted} trajectories in {found.rounds} rounds and {duration(found.seconds)}"
    if not found.better:
        console.print(
            f"{spent}; it is no better than an untuned solver, so nothing is changed", soft_wrap=True
        )
        return 0
    path = bundles.save_tuned(bundle, found)
    console.print(f"{spent}; kept in {path}: sfumato sample {bundle} --steps {steps} uses it", soft_wrap=True)
    return 0
