"""Several processes as one: a state that is a dict of tensors, each leaf with a process and a time of its own.

    q(x_t | x_0) = prod_leaf q_leaf(x_t,leaf | x_0,leaf),       t = {leaf: time}

Leaves are noised independently; what they have to do with each other is in the data, and what a network makes of all
of them at once. Since each has its own time, one network knows every conditional and marginal of the joint law (Bao et
al. 2023, UniDiffuser, arXiv 2303.06555; Chen et al. 2024, 2407.01392, with a time a token):

    a leaf at t = 0    is clean, and stays: a condition
    a leaf at t = 1    is pure noise, and says nothing: absent
    a leaf between     is what is being drawn, or known in part

**Chance.** A leaf draws from streams of its own, 2^42 of them, whose place is a function of its name. So what is drawn
for it does not depend on which other leaves there are, and no two share numbers.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..errors import SolverError, choose
from ..noise import Apart, Draws
from .categorical import Categorical
from .gaussian import Gaussian
from .schedule import Level, Scalar

State = Mapping[str, Tensor]
Times = Scalar | Level | Mapping[str, Any]  # one for all leaves, or one a leaf


@dataclass(frozen=True)
class Joint:
    """Processes by the name of their leaf; states, times and predictions are dicts with the same names.

    Raises SolverError for no leaf at all, a leaf that is neither Gaussian nor categorical, names whose streams of noise
    coincide, or a state or times that lack a leaf or have one too many.
    """

    processes: Mapping[str, Gaussian | Categorical] = field(hash=False)

    def __post_init__(self) -> None:
        leaves = dict(self.processes) if isinstance(self.processes, Mapping) else {}
        if not leaves or not all(isinstance(name, str) and name for name in leaves):
            raise SolverError(f"a joint process is a dict of processes by name, not {self.processes!r}")
        for name, process in leaves.items():
            if not isinstance(process, Gaussian | Categorical):
                raise SolverError(
                    f"a leaf of a joint process is gaussian or categorical; {name!r} is {type(process).__name__}"
                )
        object.__setattr__(self, "processes", leaves)
        streams = {_stream(name): name for name in leaves}
        if len(streams) < len(leaves):
            lost = next(name for name in leaves if streams[_stream(name)] != name)
            raise SolverError(
                f"the leaves {lost!r} and {streams[_stream(lost)]!r} would share their noise: rename one of them"
            )

    def __getitem__(self, name: str) -> Gaussian | Categorical:
        return self.processes[choose(name, self.processes, "leaf", SolverError)]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.processes)

    def level(self, t: Times) -> dict[str, Level]:
        """The noise level of each leaf, from a time for all or one for each."""
        times = self.whole(t, "times") if isinstance(t, Mapping) else dict.fromkeys(self.names, t)
        return {name: process.level(times[name]) for name, process in self.processes.items()}

    def whole(self, given: Mapping[str, Any], what: str) -> Mapping[str, Any]:
        """A dict with exactly the leaves of the process; SolverError for another."""
        for name in given:
            choose(name, self.processes, f"leaf of the {what}", SolverError)
        missing = [name for name in self.processes if name not in given]
        if missing:
            raise SolverError(f"the {what} lack the leaf {missing[0]!r}")
        return given

    @staticmethod
    def draws(name: str, noise: Draws) -> Draws:
        """The draws of one leaf."""
        return Apart(noise, _stream(name))

    def state_shape(self, shape: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """The shapes of a state whose data have these shapes, without the batch."""
        return {name: process.state_shape(shape[name]) for name, process in self.processes.items()}

    def data(self, state: State) -> State:
        """The part of a state that is data."""
        return {name: self.processes[name].data(leaf) for name, leaf in state.items()}

    # -- leaf by leaf ------------------------------------------------------------------------------------------
    def prior(self, like: State, noise: Draws, level: Mapping[str, Level] | None = None) -> dict[str, Tensor]:
        """Where sampling starts: every leaf of `like` from its own prior."""
        return {
            name: self[name].prior(leaf, self.draws(name, noise), level[name] if level else None)
            for name, leaf in like.items()
        }

    def corrupt(self, x0: State, t: Times, noise: Draws) -> dict[str, Tensor]:
        """Draw every leaf from q(x_t | x_0) at its own time."""
        self.whole(x0, "data")
        levels, out = self.level(t), {}
        for name, process in self.processes.items():
            draws, leaf = self.draws(name, noise), x0[name]
            out[name] = (
                process.corrupt(leaf, levels[name], draws.normal(leaf))
                if isinstance(process, Gaussian)
                else process.corrupt(leaf, levels[name], draws)
            )
        return out

    def bridge(
        self,
        x_t: State,
        prediction: Mapping[str, Any],
        t: Times,
        s: Times,
        noise: Draws,
        eta: float = 1.0,
    ) -> dict[str, Tensor]:
        """Draw every leaf from q(x_s | x_t, x_0) with its predicted x_0; one whose time stands still stays."""
        before, after, out = self.level(t), self.level(s), {}
        for name, process in self.processes.items():
            a, b, leaf = before[name], after[name], x_t[name]
            draws = self.draws(name, noise)
            out[name] = (
                leaf if a is b or stands(a, b) else process.bridge(leaf, prediction[name], a, b, draws, eta)
            )
        return out

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "joint",
            "processes": {name: process.to_json() for name, process in self.processes.items()},
        }


def stands(t: Level, s: Level) -> bool:
    """Whether a step from t to s is none, of levels in floats."""
    return not isinstance(t.log_snr, Tensor) and t.log_snr == s.log_snr


def _stream(name: str) -> int:
    """Where the streams of a leaf begin: below those of Brownian trees, above those of any one leaf's solver."""
    return (1 + zlib.crc32(name.encode()) % (1 << 20)) << 42
