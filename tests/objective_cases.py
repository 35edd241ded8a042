"""Networks that say what they are told, which tests of objectives share."""

from __future__ import annotations

from sfumato.processes import (
    Prediction,
)


class Says:
    """A denoiser that changes what another one says: x0 becomes change(x0), told in any row."""

    def __init__(self, denoiser, change=lambda x0: x0, kind="x0", variance=None):
        self.denoiser, self.process, self.change, self.kind = denoiser, denoiser.process, change, kind
        self.learned_variance, self.variance = variance is not None, variance

    def __call__(self, x_t, t, condition=None):
        level = self.process.level(t)
        x0 = self.change(self.denoiser(x_t, t, condition).x0)
        value = self.process.convert(x0, x_t, level, "x0", self.kind)
        variance = None if self.variance is None else self.variance.expand_as(x_t)
        return Prediction(value, self.kind, x_t, level, self.process, variance)
