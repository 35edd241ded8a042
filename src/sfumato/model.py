"""A trained model as its user meets it: `model.sample(16, condition={"label": 3}, seed=0)`.

A `Model` is a denoiser with what is needed to use it: the domain of its data and the settings it is best sampled
with. Sampling is a function of (model, seed, sample index, condition, settings): sample 7 of a hundred is the same
picture as sample 7 drawn alone, whatever the batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from .cascade import Base
from .codec import IDENTITY, Codec, IdentityCodec, check_latents, fingerprint
from .conditions import Conditions
from .denoisers import (
    Agreeing,
    Classifier,
    ClassifierFree,
    Denoiser,
    Denoises,
    Guidance,
    JointDenoiser,
    build_guidance,
)
from .domains.images import Images
from .drawing import check_numbers, counted, draw, joined
from .errors import BundleError, SolverError
from .noise import Noise
from .personal import Adapter, check_made_for, merge
from .sampling import Sampling
from .solvers import (
    DDIM,
    AdamsMoulton,
    AngleGrid,
    Callback,
    DPMpp2M,
    Driver,
    Grid,
    LogLikelihood,
    Solver,
    Tuned,
    Unfinished,
    log_likelihood,
    noisiest,
    steps_within,
)
from .solvers.tuning import Effort, Progress, Tuning, tune


@dataclass
class Model:
    """A denoiser, its domain and its sampling settings; `sfumato.load` makes one from a bundle.

    info: the bundle's record (recipe, data card, versions, hashes), empty for a model made in memory.
    tuned: solvers fitted to it, which `sample` uses for their steps unless it is given a solver or grid.
    words: what its adapters taught it to be asked for in prompts, (tokens, text_dim) by name; see `personal.spoken`.
    base: the model whose pictures this one enlarges, if it is the second stage of a cascade.
    codec: between pictures and what the denoiser makes; the identity by default. Raises BundleError if its latents are
    not the denoiser's.
    """

    denoiser: Denoiser
    domain: Images
    sampling: Sampling
    info: dict[str, Any] = field(default_factory=dict)
    tuned: tuple[Tuned, ...] = ()
    words: dict[str, Tensor] = field(default_factory=dict)
    codec: Codec = IDENTITY
    base: Base | None = None

    def __post_init__(self) -> None:
        if self.base is not None:
            self.base.check(self)
        if not isinstance(self.codec, IdentityCodec):
            check_latents(self.codec, self.domain.shape, self.denoiser.network)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of what the denoiser makes: of a latent, or of a picture without a codec."""
        return self.codec.shape(self.domain.shape)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, () for an unconditional model."""
        config = getattr(self.denoiser.network, "config", {})
        return self.domain.classes if config.get("classes") else ()

    @property
    def conditions(self) -> Conditions:
        """What this model can be asked for, and how a user's words for it become tensors."""
        image = None
        if self.base is not None:
            image = partial(self.base.image, size=self.domain.shape[1:], process=self.denoiser.process)
        guidable = bool(self.info.get("guidable", True))
        own = None if isinstance(self.domain, Images) else self.domain
        return Conditions(self.classes, guidable, self.info.get("text"), self.words, own, image)

    def completed(
        self, condition: Mapping[str, Any] | None, indices: Sequence[int], seed: int = 0, batch: int = 64
    ) -> Mapping[str, Any] | None:
        """The condition, and of a model that enlarges pictures of its base with it, if none are given."""
        if self.base is None or "image" in (condition or {}):
            return condition
        return {**(condition or {}), "image": self.base.draw(condition, indices, seed, batch)}

    def guided(self, guidance: float | str | Guidance) -> Denoises:
        """The denoiser under classifier-free guidance (the denoiser itself at 1); its words become tensors here.

        Its estimates agree with what it is told, where the domain says what that is (`Domain.agree`).
        """
        guided = self._guided(guidance)
        agree = None if isinstance(self.domain, Images) else self.domain.agree
        return guided if agree is None else Agreeing(guided, agree)

    def _guided(self, guidance: float | str | Guidance) -> Denoises:
        if isinstance(self.denoiser, Classifier):
            raise BundleError(
                "this is a classifier of noisy data and draws nothing: let it guide another model"
            )
        guidance = build_guidance(guidance)
        if guidance == 1 or isinstance(self.denoiser, JointDenoiser):  # between leaves it is the sampler's
            return self.denoiser
        if not self.conditions.names:
            raise BundleError("this model knows no labels, so there is nothing to guide by: use guidance 1")
        if not self.info.get("guidable", True):
            raise BundleError(
                "this model was trained without dropping its labels: it can only be sampled at guidance 1"
            )
        if not isinstance(guidance, Guidance):
            return ClassifierFree(self.denoiser, guidance, len(self.classes))
        negative, *also = (
            replace(self.conditions, image=None).tensors(words, 1)
            if words
            else None  # the picture is the sample's
            for words in (guidance.negative, *(words for _, words in guidance.also))
        )
        return ClassifierFree(
            self.denoiser, guidance, len(self.classes), negative=negative, also=[c for c in also if c]
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the network's weights, names and shapes included."""
        return fingerprint(self.denoiser.network)

    def with_adapters(self, adapters: Sequence[Adapter | tuple[Adapter, float]]) -> Model:
        """A new model with adapters added to its weights, each times its weight (default 1); this one is untouched.

        W + sum_i w_i (alpha_i / r_i) B_i A_i, and the adapters' new classes and words. It has another fingerprint, so
        solvers tuned to this model are not its own. Raises BundleError for an adapter of another model, two that teach
        one class or word, and a name that the model has already.
        """
        pairs = [one if isinstance(one, tuple) else (one, 1.0) for one in adapters]
        own, words, classes = self.fingerprint, dict(self.words), list(self.domain.classes)
        for adapter, _ in pairs:
            check_made_for(own, self.denoiser.network, adapter)
            for taught, known, what in (
                (adapter.classes, classes, "class"),
                (adapter.words, words, "word"),
            ):
                if there := [name for name in taught if name in known]:
                    raise BundleError(
                        f"the model has a {what} {there[0]!r} already: take one of the adapters"
                    )
            classes += adapter.classes
            words |= adapter.words
        denoiser = copy.deepcopy(self.denoiser)
        merge(denoiser.network, pairs)
        kept = ("guidable", "recipe", "data", "training", "text")
        info = {key: self.info[key] for key in kept if key in self.info}
        info["adapters"] = [
            {"made for": adapter.base, "sha256": adapter.about.get("sha256"), "weight": weight}
            for adapter, weight in pairs
        ]
        domain = replace(self.domain, classes=tuple(classes))
        return Model(
            denoiser.eval().requires_grad_(False), domain, self.sampling, info, words=words, codec=self.codec,
            base=self.base,
        )  # fmt: skip

    def plan(
        self,
        solver: Solver | str | None = None,
        grid: Grid | str | None = None,
        steps: int | None = None,
        guidance: float | str | Guidance | None = None,
        *,
        conditional: bool = False,
        start: float | None = None,
    ) -> Sampling:
        """The settings that `sample` uses: the model's own where none are given, a tuned solver where one fits.

        One fits if it has been tuned to these steps at this guidance, with conditions as here. solver: also "tuned".
        start: the time to come from instead of noise; a tuned solver is tuned to the whole way and never fits.
        Raises BundleError for a tuned solver of another model, guidance or kind of condition, or where there is none.
        """
        if start is not None:
            plan = self.sampling.with_(solver, grid, steps, guidance)
            return plan.with_(grid=replace(plan.grid, start=start))
        if isinstance(solver, Tuned):
            grid, steps = grid or solver.grid, steps or solver.steps
        plan = self.sampling.with_(None if solver == Tuned.kind else solver, grid, steps, guidance)
        if grid is None and solver in (None, Tuned.kind):
            near = [tuned for tuned in self.tuned if tuned.steps == plan.steps]
            fitting = [t for t in near if (t.guidance, t.conditional) == (plan.guidance, conditional)]
            if solver == Tuned.kind and not near:
                has = ", ".join(str(n) for n in sorted({tuned.steps for tuned in self.tuned})) or "none"
                raise BundleError(
                    f"no solver of this model is tuned to {plan.steps} steps (tuned are: {has}); "
                    f"make one: sfumato tune BUNDLE --steps {plan.steps}"
                )
            for own in fitting[:1] or (near[:1] if solver == Tuned.kind else []):
                plan = replace(plan, solver=own, grid=own.grid)
        if isinstance(plan.solver, Tuned) and plan.solver.weights:
            self._check_tuned(plan.solver, plan.guidance, conditional)
        return plan

    def _check_tuned(self, solver: Tuned, guidance: float | Guidance, conditional: bool) -> None:
        own = self.fingerprint
        if solver.weights != own:
            raise BundleError(
                f"this solver is tuned to another model: its weights have the SHA-256 {solver.weights[:12]}, these "
                f"{own[:12]}; tune it to this one"
            )
        if solver.guidance != guidance:
            raise BundleError(
                f"this solver is tuned to guidance {solver.guidance:g}, not {guidance:g}: give that guidance, or tune "
                "another"
            )
        if solver.conditional != conditional:
            was, now = ("with", "without") if solver.conditional else ("without", "with")
            raise BundleError(
                f"this solver is tuned to sampling {was} a condition, and this is {now} one: tune another"
            )

    def tune(
        self,
        steps: int,
        *,
        guidance: float | str | Guidance | None = None,
        trajectories: int = 300,
        seed: int = 0,
        effort: Effort | None = None,
        progress: Progress | None = None,
    ) -> Tuning:
        """Fit a solver of so many evaluations to this model's own trajectories; `Tuning.solver` may go into `tuned`.

        A model with labels is tuned to all of them in turn, one with captions to its examples. The start points are
        other ones than `sample` of any seed starts from. The rivals are the model's own solver, if it is deterministic,
        the package's default, DDIM and DPM-Solver++(2M).
        """
        check_numbers(self.denoiser.process, "a tuned solver")
        guidance = self.sampling.guidance if guidance is None else build_guidance(guidance)
        process, weights = self.denoiser.process, next(self.denoiser.parameters())
        noise = Noise(seed, trajectories)
        # key 0 of a sample's draws is its prior, and deterministic solvers use no other
        x = process.prior(weights.new_empty(trajectories, *self.latent_shape), noise.at(1), noisiest(process))
        asked = self.completed(self.conditions.in_turn(trajectories), range(trajectories), seed)
        condition = self.conditions.tensors(asked, trajectories)
        condition = condition and {name: value.to(weights.device) for name, value in condition.items()}
        rivals = {}
        own = self.sampling.grid
        for solver, grid in (
            (self.sampling.solver, own),
            (AdamsMoulton(), AngleGrid()),
            (DDIM(), own),
            (DPMpp2M(), own),
        ):
            # ends of a stochastic solver say nothing about its error, and an adaptive one has its own steps
            comparable = not solver.stochastic and not isinstance(solver, Driver)
            if comparable and solver.cost(solver.least_steps) <= steps:
                levels = grid.levels(process, steps_within(solver, steps))
                rivals[f"{solver.kind}, {grid.kind} grid"] = (solver, levels)
        denoiser = self.guided(guidance)
        found = tune(denoiser, x, steps, condition=condition, rivals=rivals, effort=effort, progress=progress)
        stamped = replace(
            found.solver, weights=self.fingerprint, guidance=guidance, conditional=bool(condition)
        )
        return replace(found, solver=stamped)

    def sample(  # noqa: PLR0913 (what a sample depends on)
        self,
        count: int | None = None,
        *,
        indices: Sequence[int] | None = None,
        condition: Mapping[str, Any] | None = None,
        seed: int = 0,
        steps: int | None = None,
        solver: Solver | str | None = None,
        grid: Grid | str | None = None,
        guidance: float | str | Guidance | None = None,
        start: tuple[Tensor, float] | None = None,
        around: Callable[[Denoises], Denoises] | None = None,
        batch: int = 64,
        callback: Callback | None = None,
    ) -> Tensor:
        """Draw samples, (count, channels, height, width) in [-1, 1]; `model.domain` shows and writes them.

        count: how many, samples 0 to count - 1 of the seed; or indices: which. condition: {"label": one label or
        one for each sample}, by number or name, or {"text": one prompt or one for each}; without it a conditional
        model draws from all its data. A model that enlarges takes {"image": pictures of its base's shape, one a sample}
        too; without, its base draws them, by its own settings.
        start: (estimates, t0) to come from instead of noise: one (channels, height, width) in [-1, 1] a sample, noised
        to the time t0 in (0, 1] first; all the steps are spent from there (see `solvers.sample_from`).
        guidance: a weight, a `Guidance`, or its text. around: makes of the guided denoiser the one that is sampled,
        `lambda d: ScoreGuided(d, score)`; a tuned solver, which knows nothing of it, is then used only if asked for.
        batch: how many are held in memory at once; it does not change them.
        An adaptive solver goes by its tolerance: it takes no steps, and of a grid the ends.
        callback(done, total, x, prediction): called after each step; done and total count steps over all batches. Under
        a codec x and prediction are of latents, which `codec.decode` makes pictures of.
        Raises `solvers.Unfinished`, which holds the samples that were finished, if sampling fails in a later batch.
        """
        if start is not None:
            check_numbers(self.denoiser.process, "starting from an example")
            count = len(start[0]) if count is None and indices is None else count
        if (count is None) == (indices is None):
            raise BundleError(
                "say how many samples (count) or which ones (indices), not both and not neither"
            )
        chosen = list(range(count or 0)) if indices is None else list(indices)
        if not chosen or batch < 1:
            raise BundleError(
                f"at least one sample and a batch of at least one are needed, not {len(chosen) or count}, {batch}"
            )
        try:
            whole = Noise(seed, chosen)
        except ValueError as error:  # a seed or an index that is none
            raise BundleError(str(error)) from None
        condition = self.completed(condition, chosen, seed, batch)
        since = None if start is None else start[1]
        if around is not None and solver is None:
            solver = self.sampling.solver
        plan = self.plan(solver, grid, steps, guidance, conditional=bool(condition), start=since)
        if steps is not None and isinstance(plan.solver, Driver):
            raise SolverError(
                f"the {plan.solver.kind} solver chooses its own steps: leave steps out, and set its tolerance"
            )
        if start is not None and start[0].shape != (len(chosen), *self.domain.shape):
            raise BundleError(
                f"to start from, {len(chosen)} samples need {(len(chosen), *self.domain.shape)}, "
                f"not {tuple(start[0].shape)}"
            )
        denoiser = self.guided(plan.guidance)
        denoiser = denoiser if around is None else around(denoiser)
        given = self.conditions.tensors(condition, len(chosen), whole)
        weights = next(self.denoiser.parameters())
        chunks = range(0, len(chosen), batch)
        noises = [Noise(seed, chosen[begin : begin + batch]) for begin in chunks]
        drawn = []
        for k, begin in enumerate(chunks):
            part = slice(begin, begin + batch)
            own = given and {name: value[part].to(weights.device) for name, value in given.items()}
            since = None if start is None else self.codec.encode(start[0][part].to(weights))
            told = counted(callback, k, len(chunks))
            settings = {"condition": own, "start": since, "like": weights, "callback": told}
            try:
                made = draw(denoiser, noises[k], self.latent_shape, plan, **settings)
                drawn.append(self.codec.decode(made))
            except SolverError as error:
                own = error if isinstance(error, Unfinished) else Unfinished(str(error), (), weights)
                if not (begin or own.finished):
                    raise
                kept = joined([*drawn, *([self.codec.decode(own.samples)] if own.finished else [])])
                said = f"{error}; {len(kept)} of {len(chosen)} samples were finished"
                raise Unfinished(said, (*chosen[:begin], *own.finished), kept) from error
        return joined(drawn)

    def log_likelihood(
        self,
        x: Tensor,
        condition: Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
        steps: int = 16,
        probes: int = 0,
    ) -> LogLikelihood:
        """log p(x | condition) in nats, of what the unguided flow draws; see `solvers.log_likelihood`.

        x: (batch, channels, height, width) in [-1, 1]. condition: as in `sample`. probes: 0 for the exact trace, which
        costs a backward pass for each number of a picture, or at least 4 random ones of a seed. Raises BundleError for
        a model of latents, which gives none to pictures. It is the network's alone, without `Domain.agree`.
        """
        if not isinstance(self.codec, IdentityCodec):
            raise BundleError(
                "a model of latents has no log-likelihood of pictures: decoding is not invertible, so no density "
                "carries over (that of latents: solvers.log_likelihood of model.denoiser at model.codec.encode(x))"
            )
        check_numbers(self.denoiser.process, "a log-likelihood of the flow")
        given = self.conditions.tensors(condition, len(x))
        given = given and {name: value.to(x.device) for name, value in given.items()}
        noise = Noise(seed, len(x))
        return log_likelihood(self.denoiser, x, given, steps=steps, probes=probes, noise=noise)
