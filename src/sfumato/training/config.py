"""The `[training]` section of a recipe: how long, how fast, how carefully.

Progress is counted in images, never in steps: a run of two million images is the same run at batch 64 and at
batch 256, on one device and on eight, and every figure below that says "images" survives a change of batch.

Nothing here imports torch, so that a recipe can be read and checked without it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Images = Annotated[int, Field(ge=0)]
Decay = Literal["constant", "linear", "cosine", "inverse-sqrt", "wsd"]
Precision = Literal["float32", "bfloat16", "float16"]

GREATEST_SIGMA_REL = 12**-0.5  # the uniform average, gamma = 0


class TrainingConfig(BaseModel):
    """What the trainer needs to know besides the model, the data and the folder. Every field has a unit.

    Raises pydantic.ValidationError for an unknown field or an impossible value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: Annotated[int, Field(gt=0)] = 1_000_000
    """Length of the run in images shown (with repetition); rounded up to whole batches."""
    batch: Annotated[int, Field(gt=0)] = 64
    """Images an optimiser step sees, over all devices and micro-batches."""
    micro_batch: Annotated[int, Field(gt=0)] | None = None
    """Images that pass through the network at once, a divisor of `batch`; None: all of them. A memory knob:
    the noise, and so the gradient, does not depend on it (up to rounding)."""

    optimizer: str = "adamw"
    """A kind that `training.optimizers.build_optimizer` knows: adamw, adam, sgd, muon, or one registered."""
    optimizer_options: dict[str, float] = {}
    """More for that optimiser: muon takes matrix_rate (learning rate of matrices, in units of `learning_rate`; 10) and
    momentum (0.95)."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2e-4
    """The peak, after the warm-up."""
    warmup: Images = 10_000
    """Images over which the learning rate rises linearly from 0."""
    decay: Decay = "constant"
    """After the warm-up: constant; linear or cosine to 0 at `images`; inverse-sqrt (EDM2); wsd: constant,
    then linearly to 0 over the last `decay_fraction`."""
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    """wsd: the share of the run, at its end, in which the learning rate falls."""
    decay_reference: Images = 0
    """inverse-sqrt: images after which the learning rate starts to fall; 0: at the end of the warm-up."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    """Decay of the first and second moment, per optimiser step."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled decay of tensors with two or more dimensions (not of biases and gains), times the learning
    rate."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Greatest norm of the gradient; 0: not clipped."""

    ema: tuple[Annotated[float, Field(gt=0, le=GREATEST_SIGMA_REL)], ...] = (0.05, 0.10)
    """Power-function averages of the weights, by their width sigma_rel (a share of the run); the first is
    validated, shown and exported."""
    ema_halflife: Images = 0
    """Half-life in images of an exponential average, tracked besides `ema`; 0: none."""
    ema_ramp: Annotated[float, Field(gt=0)] = 0.05
    """The half-life is at most this share of the images seen, so that the random start is forgotten."""
    snapshot_every: Images = 0
    """Images between snapshots of the averages for post-hoc reconstruction of any sigma_rel; 0: none."""

    precision: Precision = "float32"
    """Of activations and matrix products (weights stay float32): float32, bfloat16, or float16 (CUDA
    only)."""
    compile: bool = False
    """Whether the network runs through torch.compile; on a CPU this needs a C++ compiler."""
    channels_last: bool = False
    """Whether convolution weights and images are stored with their channels innermost."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Keys the order of the data, the noise and dropout; the initial weights are the caller's."""

    checkpoint_every: Images = 100_000
    """Images between checkpoints; 0: only at the end and when interrupted."""
    keep_last: Annotated[int, Field(ge=1)] = 2
    """Newest checkpoints that are kept, besides the one with the lowest held-out loss."""
    validate_every: Images = 50_000
    """Images between measurements of the held-out loss; 0: never."""
    validate_images: Annotated[int, Field(gt=0)] = 1024
    """Held-out images a measurement uses at most, always the same with the same noise."""
    preview_every: Images = 0
    """Images between calls of the preview; 0: never."""
    log_every: Annotated[int, Field(gt=0)] = 5_000
    """Images between lines of the log."""
    tensorboard: bool = False
    """Whether the log is written for TensorBoard as well (needs the extra)."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if self.micro_batch is not None and self.batch % self.micro_batch:
            near = max(d for d in range(1, self.batch + 1) if self.batch % d == 0 and d <= self.micro_batch)
            raise ValueError(
                f"micro_batch {self.micro_batch} does not divide batch {self.batch}; {near} does"
            )
        if self.warmup > self.images:
            raise ValueError(f"a warm-up of {self.warmup} images is longer than the run of {self.images}")
        if len(set(self.ema)) != len(self.ema):
            raise ValueError(f"ema names a width twice: {list(self.ema)}")
        return self
