"""Schedules and the Gaussian process: every kind obeys the laws, and agrees with the papers computed another way."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from sfumato.errors import SolverError
from sfumato.noise import Noise
from sfumato.processes import (
    CLEAN,
    DDPM,
    EDM,
    PARAMETERISATIONS,
    SCHEDULES,
    VE,
    Cosine,
    Flow,
    Gaussian,
    Laplace,
    LawBroken,
    Linear,
    Schedule,
    Shifted,
    Sigmoid,
    SubVP,
    Table,
    ZeroTerminalSNR,
    build_process,
    build_schedule,
    check_process,
)

real = st.floats
BASES = {
    "linear": st.builds(lambda a, b: Linear(a, a + b), real(0.01, 2), real(0, 40)),
    "ddpm": st.builds(
        lambda n, a, b: DDPM(n, a, a + b), st.integers(50, 2000), real(1e-4, 1e-3), real(0, 0.02)
    ),
    "cosine": st.builds(Cosine, real(0, 0.5)),
    "sigmoid": st.builds(Sigmoid, real(-4, 0), real(1, 4), real(0.3, 1.5)),
    "laplace": st.builds(Laplace, real(-3, 3), real(0.1, 3)),
    "sub-vp": st.builds(lambda a, b: SubVP(a, a + b), real(0.01, 2), real(0, 40)),
    "flow": st.just(Flow()),
    "ve": st.builds(lambda a, b: VE(a, a * b), real(0.001, 0.1), real(10, 1e4)),
    "edm": st.builds(lambda a, b, r: EDM(a, a * b, r), real(0.001, 0.1), real(10, 1e4), real(1, 9)),
    "table": st.builds(
        lambda n, a, b, end: Table(
            [*torch.cumprod(1 - torch.linspace(a, a + b, n).double(), 0).tolist(), *end]
        ),
        st.integers(50, 2000),
        real(1e-4, 1e-3),
        real(0, 0.02),
        st.sampled_from([(), (0.0,)]),
    ),
}
VP = ("linear", "ddpm", "cosine", "sigmoid", "laplace", "table")
EACH = [cls() for cls in SCHEDULES.values()] + [
    Shifted(Linear(), 2.0),
    Shifted(EDM(), 0.5),
    ZeroTerminalSNR(DDPM()),
]
each_schedule = pytest.mark.parametrize(
    "schedule", EACH, ids=lambda s: "-".join(map(str, s.to_json().values()))[:40]
)


def drawn(kind: str) -> st.SearchStrategy[Schedule]:
    if kind == "shifted":
        return st.builds(Shifted, st.one_of(*BASES.values()), real(0.2, 5))
    if kind == "zero-terminal-snr":
        return st.builds(ZeroTerminalSNR, st.one_of(*(BASES[name] for name in VP)))
    return BASES[kind]


@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_schedule_obeys_the_laws(kind):
    @settings(max_examples=12)
    @given(schedule=drawn(kind), sigma_data=real(0.1, 3))
    def law(schedule, sigma_data):
        check_process(Gaussian(schedule, sigma_data))
        again = build_schedule(**json.loads(json.dumps(schedule.to_json())))
        assert again == schedule
        assert again.level(0.3) == schedule.level(0.3)

    law()


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_rates_of_a_schedule_are_those_of_automatic_differentiation(kind):
    """Also where they are infinite, and in any shape."""

    @settings(max_examples=25)
    @given(schedule=drawn(kind), inside=st.lists(st.floats(0, 1), min_size=2, max_size=2))
    def law(schedule, inside):
        t = torch.tensor([[0.0, 1.0], inside], dtype=torch.float64)
        for own, automatic in zip(schedule.rates(t), Schedule.rates(schedule, t), strict=True):
            known = automatic.isfinite()
            torch.testing.assert_close(own[known], automatic[known], rtol=1e-9, atol=1e-12)
            # at an end with an infinite slope, differentiation may find 0 times infinity
            assert not bool(own[~known].isfinite().any())

    law()


def test_transformations_of_transformations_obey_them_too():
    check_process(Gaussian(Shifted(ZeroTerminalSNR(Shifted(DDPM(), 1.5)), 2.0)))


def test_ddpm_is_the_chain_of_ho_et_al():
    beta = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.cumprod(1 - beta)
    alpha, sigma = DDPM().alpha_sigma(torch.arange(1001, dtype=torch.float64) / 1000)
    assert np.allclose(alpha.numpy() ** 2, np.append(1.0, alpha_bar), rtol=1e-12, atol=0)
    assert np.allclose(sigma.numpy()[1:] ** 2, 1 - alpha_bar, rtol=1e-11, atol=0)
    # the same by composing one-step kernels N(sqrt(1 - beta) x, beta)
    scale, variance = 1.0, 0.0
    for i, b in enumerate(beta):
        scale, variance = scale * math.sqrt(1 - b), (1 - b) * variance + b
        if i % 97 == 0:
            level = DDPM().level((i + 1) / 1000)
            assert level.alpha == pytest.approx(scale, rel=1e-12)
            assert level.sigma**2 == pytest.approx(variance, rel=1e-10)


def test_ddpm_tends_to_linear_as_its_steps_become_many():
    t = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    gaps = []
    for steps in (1_000, 10_000):
        table = DDPM(steps, 0.1 / steps, 20 / steps)
        gaps.append(float((table.log_alpha(t) - Linear(0.1, 20).log_alpha(t)).abs().max()))
    assert gaps[1] < 6e-3
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.1), "the gap is of first order in the step"


@pytest.mark.parametrize("base", [Linear(), DDPM(), Cosine(), Sigmoid(), DDPM(1000, 1e-4, 0.01)])
def test_zero_terminal_snr_moves_the_end_alone(base):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    alpha, sigma = ZeroTerminalSNR(base).alpha_sigma(t)
    old = base.alpha_sigma(t)[0].numpy()
    assert float(alpha[-1]) == 0.0
    assert float(sigma[-1]) == 1.0
    assert ZeroTerminalSNR(base).level(1.0).log_snr == -math.inf
    assert float(alpha[0]) == pytest.approx(old[0], abs=1e-15)
    assert np.allclose(
        alpha, old[0] * (old - old[-1]) / (old[0] - old[-1]), atol=1e-12
    )  # Lin et al., algorithm 1


@given(factor=real(0.1, 10), other=real(0.1, 10), t=real(0, 1))
def test_shifted_flow_is_the_familiar_formula_and_shifts_compose(factor, other, t):
    level = Shifted(Flow(), factor).level(t)
    assert level.sigma == pytest.approx(factor * t / (1 + (factor - 1) * t), abs=1e-12)
    assert level.alpha == pytest.approx(1 - level.sigma, abs=1e-12)
    for base in (Flow(), Linear(), EDM()):
        twice, once = Shifted(Shifted(base, factor), other).level(t), Shifted(base, factor * other).level(t)
        assert twice[1:3] == pytest.approx(once[1:3], abs=1e-9)


def test_formulas_of_the_papers():
    t = np.linspace(0.01, 0.99, 33)
    as_numpy = {s.kind: [v.numpy() for v in s.alpha_sigma(torch.tensor(t))] for s in EACH[:9]}
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)
    assert np.allclose(as_numpy["cosine"][0], f, rtol=1e-12)
    assert np.allclose(as_numpy["cosine"][1], np.sqrt(1 - f**2), rtol=1e-9)
    sigma = (0.002 ** (1 / 7) + t * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    assert np.allclose(as_numpy["edm"][1], sigma, rtol=1e-12)
    assert np.allclose(as_numpy["ve"][1], 0.01 * 5000**t, rtol=1e-12)
    integral = 0.1 * t + (20 - 0.1) * t**2 / 2
    assert np.allclose(as_numpy["linear"][0], np.exp(-integral / 2), rtol=1e-12)
    assert np.allclose(as_numpy["sub-vp"][1], 1 - np.exp(-integral), rtol=1e-12)
    logistic = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    gamma = (logistic(3.0) - logistic(-3 + 6 * t)) / (logistic(3.0) - logistic(-3.0))
    assert np.allclose(as_numpy["sigmoid"][0] ** 2, gamma, rtol=1e-10)


def test_a_uniform_time_has_a_laplace_log_snr():
    from scipy import stats

    log_snr = Laplace(0.5, 0.7).log_snr(torch.linspace(0.001, 0.999, 999, dtype=torch.float64))
    want = stats.laplace.ppf(1 - np.linspace(0.001, 0.999, 999), 0.5, 0.7)
    assert np.allclose(log_snr, want, atol=1e-9)


@each_schedule
def test_the_forward_equation_carries_the_marginals(schedule):
    """dm/dt = f m and dP/dt = 2 f P + g^2, integrated by somebody else, arrive at alpha m and alpha^2 P + sigma^2."""
    process, first, last = Gaussian(schedule), 0.1, 0.9
    mean, variance = 0.7, 0.4

    def forward(t, y):
        f, g = process.drift(float(t)), process.diffusion(float(t))
        return [f * y[0], 2 * f * y[1] + g * g]

    a, b = process.level(first), process.level(last)
    start = [a.alpha * mean, a.alpha**2 * variance + a.sigma**2]
    inner = getattr(schedule, "base", schedule)
    if isinstance(inner, (DDPM, Table)):
        # a table's drift jumps at its entries, so entry by entry, with drift and diffusion constant on each
        end, count = start, inner.steps - isinstance(inner, Table)
        inside = [i / count for i in range(count) if first < i / count < last]
        for before, after in pairwise([first, *inside, last]):
            f, g = process.drift((before + after) / 2), process.diffusion((before + after) / 2)
            grown = math.exp(f * (after - before))
            end = [grown * end[0], grown**2 * end[1] + g * g * (grown**2 - 1) / (2 * f)]
        tolerance = 1e-5
    else:
        end = solve_ivp(forward, (first, last), start, method="DOP853", rtol=1e-8, atol=1e-12).y[:, -1]
        tolerance = 1e-6
    assert end[0] == pytest.approx(b.alpha * mean, rel=tolerance)
    assert end[1] == pytest.approx(b.alpha**2 * variance + b.sigma**2, rel=tolerance)


@each_schedule
def test_conversions_close_wherever_they_can_and_are_refused_where_they_cannot(schedule):
    process = Gaussian(schedule, 0.6)
    x0 = Noise(0, 4).normal(torch.empty(4, 3, dtype=torch.float64))
    eps = Noise(0, 4).normal(x0, stream=1)
    for t in (0.0, 0.01, 0.3, 0.9, 1.0):
        for level in (process.level(t), process.level(torch.full((4,), t, dtype=torch.float64))):
            _convert_all(process, level, x0, eps)


def _convert_all(process, level, x0, eps):
    def number(value):
        return float(value.flatten()[0]) if isinstance(value, torch.Tensor) else float(value)

    x_t = process.corrupt(x0, level, eps)
    alpha, sigma = number(level.alpha), number(level.sigma)
    for source in PARAMETERISATIONS:
        if source == "score" and sigma == 0:
            with pytest.raises(SolverError):
                process.convert(x_t, x_t, level, source, "x0")
            continue
        a, b = map(number, process.row(source, level))
        singular = not 1e-12 <= abs(alpha * b - a * sigma) < math.inf
        for target in PARAMETERISATIONS:
            if target == source or (
                target in ("score", "velocity") and level.time is not None and sigma == 0
            ):
                continue
            if singular:
                with pytest.raises(SolverError, match="says nothing of x0"):
                    process.convert(x_t, x_t, level, source, target)
                continue
            a2, b2 = map(number, process.row(target, level))
            if not (math.isfinite(a2) and math.isfinite(b2)):
                continue
            there = process.convert(a * x0 + b * eps, x_t, level, source, target)
            want = a2 * x0 + b2 * eps
            assert float((there - want).abs().max()) <= 1e-6 * max(1.0, float(want.abs().max())), (
                source,
                target,
            )


def test_the_message_of_a_refusal_says_where_and_what_instead():
    process = Gaussian(Cosine())
    x = torch.zeros(2, 3)
    with pytest.raises(
        SolverError, match=r"'eps' says nothing of x0 where alpha = 0 and sigma = 1 .*predict 'v'"
    ):
        process.convert(x, x, 1.0, "eps", "x0")
    with pytest.raises(SolverError, match="some of these levels"):
        process.convert(x, x, torch.tensor([0.5, 1.0]), "eps", "x0")
    with pytest.raises(SolverError, match="drift"):
        process.drift(1.0)


@pytest.mark.parametrize(
    "schedule", [Cosine(), ZeroTerminalSNR(), ZeroTerminalSNR(DDPM()), Shifted(Cosine(), 2.0)]
)
def test_the_velocity_is_known_where_alpha_is_zero(schedule):
    process = Gaussian(schedule)
    t, h = 1.0, 1e-6
    alpha, sigma = process.rates(t)
    before = schedule.level(t - h)
    assert alpha == pytest.approx((0 - before.alpha) / h, rel=1e-4)
    assert sigma == pytest.approx(0, abs=1e-4)
    assert abs(process.determinant("velocity", process.level(t))) > 1e-2


def test_a_gain_turns_errors_into_errors():
    process, level = Gaussian(Linear(), 0.6), Gaussian(Linear(), 0.6).level(torch.tensor([0.2, 0.7]))
    x_t, y = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    for source in PARAMETERISATIONS:
        for target in PARAMETERISATIONS:
            moved = process.convert(y + 1e-3, x_t, level, source, target) - process.convert(
                y, x_t, level, source, target
            )
            gain = process.gain(source, target, level)
            assert torch.allclose(moved, 1e-3 * gain[:, None].expand_as(moved), rtol=1e-6, atol=1e-12)


@each_schedule
def test_the_bridge_keeps_the_marginal_whatever_its_noise(schedule):
    """Var[x_s | x_0] = (weight of eps)^2 + eta^2 v must be sigma_s^2, from any t: measured, not derived."""
    process = Gaussian(schedule)
    noise = Noise(3, 1)
    x0 = torch.full((1, 40_000), 0.7, dtype=torch.float64)
    t, s = process.level(0.8), process.level(0.35)
    eps = noise.normal(x0)
    x_t = process.corrupt(x0, t, eps)
    from sfumato.processes import Prediction

    prediction = Prediction(x0, "x0", x_t, t, process)
    for eta in (0.0, 0.4, 1.0):
        x_s = process.bridge(x_t, prediction, t, s, noise.at(1), eta)
        rest = (x_s - s.alpha * x0) / s.sigma
        assert abs(float(rest.mean())) < 5 / 200
        assert float(rest.var()) == pytest.approx(1, abs=5 * 2**0.5 / 200)
    clean = process.bridge(x_t, prediction, t, CLEAN, noise.at(1), 1.0)
    assert torch.allclose(clean, x0)


@dataclass(frozen=True)
class Mine(Schedule):
    """The least a user may write: a log-SNR."""

    kind: ClassVar[str] = "mine"

    def log_snr(self, t):
        return 6 - 14 * t - torch.sin(2 * t)


class Rising(Mine):
    def log_snr(self, t):
        return 6 - 14 * t + 6 * torch.sin(7 * t)


class WrongPair(Mine):
    def alpha_sigma(self, t):
        alpha, sigma = super().alpha_sigma(t)
        return alpha, sigma * 1.001


class OffPath(Mine):
    def alpha_sigma(self, t):
        alpha, sigma = super().alpha_sigma(t)
        return 2 * alpha, 2 * sigma


class NoPath(Mine):
    path: ClassVar[str] = "vpp"

    def alpha_sigma(self, t):
        return torch.sigmoid(self.log_snr(t)).sqrt(), torch.sigmoid(-self.log_snr(t)).sqrt()


class WrongTime(Mine):
    def time(self, log_snr):
        return super().time(log_snr) + 1e-5


class WrongRates(Mine):
    def rates(self, t):
        alpha, sigma = super().rates(t)
        return alpha, -sigma


class NotANumber(Mine):
    def log_snr(self, t):
        return torch.where(t > 0.5, math.nan, super().log_snr(t))


class WrongBridge(Gaussian):
    def lag(self, t, s):
        return super().lag(t, s) * 1.01


class WrongRow(Gaussian):
    def row(self, kind, level):
        a, b = super().row(kind, level)
        return (a, b) if kind != "v" else (a * 0, b)  # v without its x0: still consistent with itself ...

    def convert(self, y, x_t, t, source, target):  # ... but not with a conversion that knows better
        return Gaussian(self.schedule).convert(y, x_t, t, source, target)


class WrongDiffusion(Gaussian):
    def diffusion(self, t):
        return super().diffusion(t) * 1.01


class NeverRefuses(Gaussian):
    def convert(self, y, x_t, t, source, target):
        try:
            return super().convert(y, x_t, t, source, target)
        except SolverError:
            return torch.zeros_like(y)


def test_a_log_snr_is_all_that_a_schedule_needs():
    check_process(Gaussian(Mine()))
    check_process(Gaussian(Shifted(Mine(), 2.0)))
    check_process(Gaussian(ZeroTerminalSNR(Mine())))


@pytest.mark.parametrize(
    ("process", "words"),
    [
        (Gaussian(Rising()), "fall"),
        (Gaussian(WrongPair()), "2 log"),
        (Gaussian(OffPath()), "path"),
        (Gaussian(NoPath()), "path"),
        (Gaussian(WrongTime()), "time"),
        (Gaussian(WrongRates()), "sigma / dt"),
        (Gaussian(NotANumber()), "fall"),
        (WrongBridge(Linear()), "Bayes"),
        (WrongRow(Linear()), "is off by"),
        (WrongDiffusion(Linear()), "diffusion"),
        (NeverRefuses(Cosine()), "refused"),
    ],
    ids=lambda value: (
        None if isinstance(value, str) else f"{type(value).__name__}-{type(value.schedule).__name__}"
    ),
)
def test_planted_defects_are_caught(process, words):
    with pytest.raises(LawBroken, match=words):
        check_process(process)


def test_levels_are_the_same_in_every_form():
    for schedule in EACH:
        one = schedule.level(0.37)
        rows = schedule.level(torch.tensor([0.37, 0.9], dtype=torch.float64))
        assert one == pytest.approx(tuple(float(row[0]) for row in rows), rel=1e-12)
        assert schedule.level(one) is one
        there = schedule.level_at(one.log_snr)
        assert there == pytest.approx(one, rel=1e-7)


def test_what_is_kept_in_inference_mode_can_be_differentiated_later():
    for schedule in (DDPM(), ZeroTerminalSNR(), ZeroTerminalSNR(DDPM())):
        with torch.inference_mode():
            schedule.level(0.5)
        assert schedule.rates(torch.tensor([0.5], dtype=torch.float64))[0] < 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: build_schedule("cosin"), "did you mean 'cosine'"),
        (lambda: build_schedule("linear", beta_mn=1.0), "did you mean 'beta_min'"),
        (lambda: Linear(beta_min=-1), "0 < beta_min"),
        (lambda: Linear(beta_min=math.nan), "finite"),
        (lambda: build_schedule("linear", beta_max="20"), "finite number"),
        (lambda: DDPM(steps=0), "steps"),
        (lambda: Sigmoid(tau=0), "tau"),
        (lambda: Laplace(scale=0), "scale"),
        (lambda: EDM(sigma_min=2, sigma_max=1), "sigma_min"),
        (lambda: VE(sigma_min=0), "sigma_min"),
        (lambda: Shifted(factor=0), "factor"),
        (lambda: build_schedule("shifted", base="flow"), "base"),
        (lambda: ZeroTerminalSNR(Flow()), "variance-preserving"),
        (lambda: Gaussian("flow"), "must be a Schedule"),  # type: ignore[arg-type]
        (lambda: Gaussian(Flow(), 0.0), "sigma_data"),
        (lambda: Flow().level(1.01), "times run from 0"),
        (lambda: Flow().level(math.nan), "times run from 0"),
        (lambda: Gaussian(Flow()).row("epsilon", CLEAN), "did you mean 'eps'"),
        (lambda: Gaussian(Flow()).row("score", CLEAN), "infinite"),
        (lambda: build_process("gausian", schedule={"kind": "flow"}), "did you mean 'gaussian'"),
    ],
)
def test_wrong_values_are_refused_in_one_line(make, words):
    with pytest.raises(SolverError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_process_is_made_again_from_what_it_writes():
    for schedule in EACH:
        process = Gaussian(schedule, 0.5)
        config = json.loads(json.dumps(process.to_json()))
        assert build_process(**config) == process
