from __future__ import annotations
import math
import torch
from sfumato.noise import Noise
from sfumato.processes import CLEAN, VE, Gaussian, Prediction
from sfumato.solvers import *
from sfumato.solvers.sde_dpm import SDEDPMpp
from sfumato.solvers.sa import SASolver


class Exact:
    """A denoiser D(x, sigma) in variance-exploding coordinates as one of ours."""

    def __init__(self, denoiser, sigma_min, sigma_max):
        self.denoiser, self.process = denoiser, Gaussian(VE(sigma_min, sigma_max))

    def __call__(self, x_t, t, condition=None):
        level = self.process.level(t)
        return Prediction(self.denoiser(x_t, level.sigma), "x0", x_t, level, self.process)


def run(denoiser, x, ends, sigmas, solver, seed=0):
    model = Exact(denoiser, ends[1], ends[0])
    levels = [*(model.process.schedule.level_at(-2 * math.log(s)) for s in sigmas), CLEAN]
    return integrate(model, solver, levels, x, Noise(seed, len(x)))
