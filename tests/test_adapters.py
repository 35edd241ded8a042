"""Models of others: their own code's numbers at their times, nothing that jumps between, one line for what is wrong."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import sfumato
from sfumato.adapters import Adapted, Borrowed, Reading, from_diffusers, load_diffusers, read_scheduler
from sfumato.denoisers import ClassifierFree, check_denoiser
from sfumato.errors import BundleError, MissingExtra, SfumatoError, SolverError
from sfumato.noise import Noise
from sfumato.processes import CLEAN, EDM, Flow, Gaussian, Shifted, Table, check_process
from sfumato.solvers import (
    DDIM,
    SOLVERS,
    KarrasGrid,
    LogSNRGrid,
    Tuned,
    UniformGrid,
    adams,
    build_solver,
    integrate,
    noisiest,
    sample,
)
from sfumato.solvers.tuning import Effort

diffusers = pytest.importorskip("diffusers", reason="needs sfumato[diffusers]")

BETAS = {
    "linear": {"beta_schedule": "linear"},
    "scaled linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "trained": {"trained_betas": np.linspace(1e-3, 0.05, 200).tolist(), "num_train_timesteps": 200},
    "zero terminal": {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
}
TEXT, POOLED = 12, 10


def unet(classes: int | None = None, seed: int = 0, **config: Any) -> torch.nn.Module:
    torch.manual_seed(seed)
    blocks = {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    }
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16)}
    return diffusers.UNet2DModel(
        **(
            {"layers_per_block": 1, "norm_num_groups": 4, "num_class_embeds": classes}
            | blocks
            | sizes
            | config
        )
    ).eval()


def unet_condition(**config: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, cross_attention_dim=TEXT, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **config,
    ).eval()  # fmt: skip


def dit(**config: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=1, out_channels=2, num_layers=1, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10, **config,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for weight in model.parameters():  # a new one answers little but 0
            weight.add_(0.05 * torch.randn_like(weight))
    return model


def pixart() -> torch.nn.Module:
    torch.manual_seed(0)
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=2, out_channels=4, num_layers=1, sample_size=8,
        patch_size=2, cross_attention_dim=16, caption_channels=TEXT,
    ).eval()  # fmt: skip


def sd3() -> torch.nn.Module:
    torch.manual_seed(0)
    return diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=2, out_channels=2, num_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=TEXT, caption_projection_dim=16, pooled_projection_dim=POOLED,
        pos_embed_max_size=8,
    ).eval()  # fmt: skip


def flux(guidance_embeds: bool = False) -> torch.nn.Module:
    torch.manual_seed(0)
    return diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=8, guidance_embeds=guidance_embeds,
        num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=TEXT, pooled_projection_dim=POOLED, axes_dims_rope=(4, 4, 8),
    ).eval()  # fmt: skip


def state(count: int = 3, channels: int = 1, seed: int = 1) -> torch.Tensor:
    return Noise(seed, count).normal(torch.empty(count, channels, 8, 8))


def words(count: int = 3, tokens: int = 5, seed: int = 2) -> dict[str, torch.Tensor]:
    noise = Noise(seed, count)
    return {
        "text": noise.normal(torch.empty(count, tokens, TEXT)),
        "pooled": noise.normal(torch.empty(count, POOLED), stream=1),
    }


class Heard(torch.nn.Module):
    """In a network's place: notes what it is told, answers its input."""

    config: ClassVar[dict[str, Any]] = {}

    def __init__(self):
        super().__init__()
        self.told: list[float] = []

    def forward(self, x, told, condition=None):
        self.told += told[:1].tolist()
        return x


# --- the noise it was trained on ---


@pytest.mark.parametrize("betas", BETAS.values(), ids=list(BETAS))
def test_the_schedule_is_theirs_at_every_integer_time_and_lawful_between(betas):
    scheduler = diffusers.DDPMScheduler(**betas)
    said = read_scheduler({**scheduler.config, "_class_name": "DDPMScheduler"})
    assert said == read_scheduler(scheduler)
    steps = said.reading.steps
    assert steps == len(scheduler.alphas_cumprod)
    alpha, sigma = said.process.schedule.alpha_sigma(torch.arange(steps, dtype=torch.float64) / (steps - 1))
    table = scheduler.alphas_cumprod.double()
    assert torch.allclose(alpha**2, table, rtol=1e-12, atol=0)
    assert torch.allclose(sigma**2, 1 - table, rtol=1e-10, atol=0)
    check_process(said.process)


@pytest.mark.parametrize("betas", ["linear", "zero terminal"])
def test_between_two_times_nothing_jumps(betas):
    schedule = read_scheduler(diffusers.DDPMScheduler(**BETAS[betas])).process.schedule
    entries = torch.arange(1000, dtype=torch.float64)
    for k in (0, 1, 500, 997, 998):
        inside = (k + torch.tensor([0.0, 1e-6, 0.25, 0.5, 0.75, 1 - 1e-6, 1.0], dtype=torch.float64)) / 999
        for value in schedule.alpha_sigma(inside):
            steps = value.diff().abs()
            assert float(steps.max()) <= 1.01 * float((value[-1] - value[0]).abs())
            assert float(steps[[0, -1]].max()) < 1e-6
        log_snr = schedule.log_snr(inside)
        assert bool((log_snr.diff() < 0).all())
        if float(log_snr[-1]) > -float("inf"):  # a straight line
            assert float(log_snr[3]) == pytest.approx(float(log_snr[0] + log_snr[-1]) / 2, rel=1e-12)
        back = schedule.time(log_snr)
        assert torch.allclose(back, inside, rtol=0, atol=1e-12)
    assert torch.equal(schedule.time(schedule.log_snr(entries / 999)), entries / 999)


def test_a_table_that_rises_or_leaves_its_range_is_refused():
    for values in ([0.9, 0.95], [1.0, 0.5], [0.5, -0.1], [0.5, float("nan")], [0.5], ["a", "b"], 3):
        with pytest.raises(SolverError, match="table"):
            Table(values)
    far = Table().level_at(1e4), Table().level_at(-1e4)
    assert (far[0].time, far[1].time) == (0.0, 1.0)


def test_the_same_training_noise_is_read_from_whichever_scheduler_names_it():
    config = BETAS["scaled linear"] | {"prediction_type": "v_prediction"}
    first = read_scheduler(diffusers.DDPMScheduler(**config))
    names = (
        "DDIM PNDM EulerDiscrete EulerAncestralDiscrete HeunDiscrete LMSDiscrete KDPM2Discrete DEISMultistep"
    )
    for name in f"{names} DPMSolverMultistep DPMSolverSinglestep UniPCMultistep".split():
        assert read_scheduler(getattr(diffusers, f"{name}Scheduler")(**config)) == first
    zero = BETAS["zero terminal"] | {"prediction_type": "v_prediction"}
    last = [
        read_scheduler(getattr(diffusers, f"{name}Scheduler")(**zero)).process.schedule.alpha_bar[-1]
        for name in ("DDIM", "EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep")
    ]
    assert last == [0.0] * 4, "theirs say 2^-24 in three of the four, for their own steps"


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_shifted_flow_visits_their_times(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    said = read_scheduler(scheduler)
    assert said.process.schedule == (Flow() if shift == 1 else Shifted(Flow(), shift))
    times = torch.arange(1000, 0, -1, dtype=torch.float64) / 1000
    assert torch.allclose(said.process.level(times).sigma, scheduler.sigmas.double(), atol=1e-6)
    heard = Adapted(Heard(), said.process, said.reading)
    for t in (1.0, 0.5, 0.001):
        heard(state(), t)
    assert heard.network.told == pytest.approx(
        [float(scheduler.timesteps[k]) for k in (0, 500, 999)], rel=1e-5
    )
    other = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    assert read_scheduler(other) == said


def test_a_flow_shifted_by_size_needs_the_size():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_image_seq_len=64,
                                                          base_image_seq_len=4)  # fmt: skip
    with pytest.raises(BundleError, match="size"):
        from_diffusers(flux(), scheduler)
    mu = 0.5 + (16 - 4) / (64 - 4) * (1.15 - 0.5)  # 8 x 8 pixels are 16 tokens
    schedule = from_diffusers(flux(), scheduler, size=(8, 8)).process.schedule
    wanted = scheduler.time_shift(mu, 1.0, torch.tensor([0.1, 0.7], dtype=torch.float64))
    assert torch.allclose(schedule.alpha_sigma(torch.tensor([0.1, 0.7], dtype=torch.float64))[1], wanted)
    assert from_diffusers(flux(), scheduler, shift=2.0).process.schedule == Shifted(Flow(), 2.0)


# --- two paths to one number ---


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("betas", BETAS.values(), ids=list(BETAS))
def test_x0_is_theirs_at_every_integer_time(predicts, betas):
    scheduler = diffusers.DDIMScheduler(prediction_type=predicts, clip_sample=False, **betas)
    network, x = unet(), state(2)
    denoiser = from_diffusers(network, scheduler)
    scheduler.set_timesteps(1)
    last = denoiser.reading.steps - 1
    with torch.no_grad():
        for i in {*range(0, last + 1, 43), 1, last}:
            if predicts == "epsilon" and scheduler.alphas_cumprod[i] < 1e-12:
                with pytest.raises(SolverError, match="says nothing of x0"):
                    _ = denoiser(x, i / last).x0
                continue
            theirs = scheduler.step(network(x, i).sample, i, x).pred_original_sample
            for ours in (denoiser(x, i / last), denoiser(x, torch.full((2,), i / last))):
                gap = float((ours.x0 - theirs).abs().max() / theirs.abs().max())
                assert gap < 2e-6, f"time {i}"


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_x0_of_edm_is_theirs(predicts):
    scheduler = diffusers.EDMEulerScheduler(prediction_type=predicts, sigma_data=0.6)
    network, x = unet(), state(2)
    denoiser = from_diffusers(network, scheduler)
    assert denoiser.process == Gaussian(EDM(0.002, 80.0, 7.0), 0.6)
    for sigma in (0.002, 0.3, 80.0):
        with torch.no_grad():
            seen = scheduler.precondition_inputs(sigma * x, sigma)
            answer = network(seen, scheduler.precondition_noise(sigma)).sample
            theirs = scheduler.precondition_outputs(sigma * x, answer, sigma)
            ours = denoiser(sigma * x, denoiser.process.schedule.level_at(-2 * np.log(sigma))).x0
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=2e-6 * float(theirs.abs().max()))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("build", [sd3, flux])
def test_a_step_of_flow_is_theirs(build, shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    denoiser, x, said = from_diffusers(build(), scheduler), state(channels=2), words()
    scheduler.set_timesteps(4)
    levels = denoiser.levels(scheduler.timesteps.tolist())
    assert levels[0].alpha == 0
    ours = integrate(denoiser, DDIM(), levels, x, Noise(0, 3), said)
    network, theirs = denoiser.network.model, x
    with torch.no_grad():
        for t in scheduler.timesteps:
            if build is sd3:
                out = network(theirs, encoder_hidden_states=said["text"], pooled_projections=said["pooled"],
                              timestep=t.expand(3)).sample  # fmt: skip
            else:
                # two by two pixels a token, row by row: as FluxPipeline packs them, whose text encoders are not here
                tokens = torch.stack([
                    theirs[:, :, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2].flatten(1) for h in range(4) for w in range(4)
                ], 1)  # fmt: skip
                places = torch.tensor([[0.0, h, w] for h in range(4) for w in range(4)])
                made = network(
                    tokens, encoder_hidden_states=said["text"], pooled_projections=said["pooled"],
                    timestep=t.expand(3) / 1000, txt_ids=torch.zeros(5, 3), img_ids=places,
                ).sample  # fmt: skip
                out = torch.empty_like(theirs)
                for k, (_, h, w) in enumerate(places.long().tolist()):
                    out[:, :, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2] = made[:, k].reshape(3, 2, 2, 2)
            theirs = scheduler.step(out, t, theirs).prev_sample
    assert torch.allclose(ours, theirs, atol=2e-5)


def test_a_flow_prediction_is_exact_at_both_ends():
    denoiser = from_diffusers(sd3(), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    x, said = state(channels=2).double(), words()
    for level in (denoiser.process.level(1.0), denoiser.process.level(1e-6), CLEAN):
        prediction = denoiser(x, level, said)
        with torch.no_grad():
            velocity = denoiser.network(x, denoiser.reading.told(_rows(level, 3)), said)
        assert torch.allclose(prediction.eps - prediction.x0, velocity.double(), atol=1e-12)
        assert torch.allclose(level.alpha * prediction.x0 + level.sigma * prediction.eps, x, atol=1e-12)


def _rows(level, count):
    return type(level)(*(torch.full((count,), float(v), dtype=torch.float64) for v in level))


@pytest.mark.parametrize(("spacing", "steps"), [("leading", 10), ("leading", 40), ("trailing", 20)])
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_our_ddim_at_their_times_is_their_ddim(spacing, steps, predicts):
    scheduler = diffusers.DDIMScheduler(
        prediction_type=predicts, timestep_spacing=spacing, clip_sample=False, set_alpha_to_one=True
    )
    network, x = unet(), state(2)
    denoiser = from_diffusers(network, scheduler)
    scheduler.set_timesteps(steps)
    ours = integrate(denoiser, DDIM(), denoiser.levels(scheduler.timesteps.tolist()), x, Noise(0, 2))
    theirs = x
    with torch.no_grad():
        for t in scheduler.timesteps:
            theirs = scheduler.step(network(theirs, t).sample, t, theirs).prev_sample
    assert float((ours - theirs).abs().max()) < 1e-4 * float(theirs.abs().max())


def test_their_ddim_leaves_the_path_where_its_steps_are_not_whole():
    """1000 times in 30 steps: theirs goes to t - 33 and asks next at another time, so even a perfect network errs."""
    scheduler = diffusers.DDIMScheduler(timestep_spacing="linspace", clip_sample=False)
    process, scheduler_steps = read_scheduler(scheduler).process, 30
    scheduler.set_timesteps(scheduler_steps)

    class Exact(torch.nn.Module):  # data that are one point: eps is known, and DDIM is exact
        config: ClassVar[dict[str, Any]] = {}

        def forward(self, x, told, condition=None):
            level = process.level(told.double() / 999)
            return ((x - 0.3 * level.alpha.reshape(-1, 1, 1, 1)) / level.sigma.reshape(-1, 1, 1, 1)).to(
                x.dtype
            )

    denoiser = Adapted(Exact(), process, Reading("eps", "index"))
    x = state(2).double()
    levels = denoiser.levels(scheduler.timesteps.tolist())[:-1]
    ours = integrate(denoiser, DDIM(), levels, x, Noise(0, 2))
    theirs = x
    for t in scheduler.timesteps[:-1]:
        theirs = scheduler.step(Exact()(theirs, t.expand(2)), t, theirs).prev_sample
    first, last = levels[0], levels[-1]
    exact = last.alpha * 0.3 + last.sigma / first.sigma * (x - first.alpha * 0.3)
    assert float((ours - exact).abs().max()) < 1e-9
    assert float((theirs - exact).abs().max()) > 1e-3


# --- every time between theirs ---


@pytest.mark.parametrize("grid", [KarrasGrid(), LogSNRGrid(), UniformGrid()])
def test_a_grid_tells_the_network_its_fractional_times(grid):
    said = read_scheduler(diffusers.DDIMScheduler())
    denoiser = Adapted(Heard(), said.process, said.reading)
    levels = grid.levels(said.process, 12)
    for level in levels[:-1]:
        denoiser(state(), level)
    told = denoiser.network.told
    assert told[0] == pytest.approx(999, abs=1e-3)
    assert told[-1] == pytest.approx(0, abs=1e-3)
    assert any(abs(k - round(k)) > 0.1 for k in told), "rounded"
    log_snr = said.process.schedule.log_snr(torch.tensor(told, dtype=torch.float64) / 999)
    assert log_snr.tolist() == pytest.approx([level.log_snr for level in levels[:-1]], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("build", [unet, dit])
def test_a_network_is_continuous_in_time(build):
    denoiser = from_diffusers(build(), diffusers.DDIMScheduler(prediction_type="v_prediction"))
    x = state(1)
    with torch.no_grad():
        values = [denoiser(x, k / 999, _label(denoiser, 1)).value for k in (500, 500.01, 500.5, 501)]
    whole = float((values[3] - values[0]).norm())
    assert 0 < float((values[1] - values[0]).norm()) < 0.05 * whole + 1e-6
    assert float((values[2] - values[0]).norm()) < 0.9 * whole


def _label(denoiser, count):
    return {"label": torch.arange(count) % 10} if denoiser.network.classes else None


@pytest.mark.parametrize("kind", [kind for kind, cls in SOLVERS.items() if Gaussian in cls().serves])
def test_every_solver_samples_a_zero_terminal_snr_model(kind):
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", **BETAS["zero terminal"])
    denoiser = from_diffusers(unet(), scheduler)
    levels = UniformGrid().levels(denoiser.process, 6)
    assert (levels[0].alpha, levels[0].log_snr) == (0.0, -float("inf"))
    x = sample(denoiser, Noise(0, 2), (1, 8, 8), solver=build_solver(kind), levels=levels)
    assert bool(x.isfinite().all())


# --- conditions ---


@pytest.mark.parametrize(
    ("build", "channels", "said"),
    [
        (lambda: unet(classes=11), 1, "label"),
        (dit, 1, "label"),
        (unet_condition, 1, "text"),
        (pixart, 2, "text"),
        (sd3, 2, "both"),
        (flux, 2, "both"),
    ],
    ids=["unet", "dit", "unet-condition", "pixart", "sd3", "flux"],
)
def test_each_network_obeys_the_laws_of_a_denoiser_and_of_guidance(build, channels, said):
    flow = said == "both"
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler() if flow else diffusers.DDIMScheduler()
    nothing = {name: value[0] for name, value in words(seed=9).items() if said == "both" or name == said}
    settings = {"null_label": 10} if said == "label" and channels == 1 and build is not dit else {}
    denoiser = from_diffusers(build(), scheduler, unconditional=nothing, **settings)
    x = state(channels=channels)
    condition = {"label": torch.tensor([0, 3, 9])} if said == "label" else words()
    if said == "text":
        condition.pop("pooled")
    check_denoiser(denoiser, x, condition)
    with torch.no_grad():
        plain, free = denoiser(x, 0.4, condition).x0, denoiser(x, 0.4).x0
        assert float((plain - free).abs().max()) > 1e-6, "the condition says nothing"
        guided = ClassifierFree(denoiser, 2.5, denoiser.network.classes)(x, 0.4, condition).x0
    assert torch.allclose(guided, free + 2.5 * (plain - free), atol=1e-4)


def test_a_mask_hides_tokens_and_is_refused_where_there_is_none():
    scheduler, x, said = diffusers.DDIMScheduler(), state(), words()
    del said["pooled"]
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 5])
    denoiser = from_diffusers(unet_condition(), scheduler)
    other = {"text": torch.where(mask[..., None], said["text"], 7.0), "text_mask": mask}
    with torch.no_grad():
        seen = [denoiser(x, 0.4, {**said, "text_mask": mask}).x0, denoiser(x, 0.4, other).x0]
        assert torch.allclose(*seen, atol=1e-6)
        assert torch.allclose(seen[0][::2], denoiser(x, 0.4, said).x0[::2], atol=1e-6)
        flow = from_diffusers(sd3(), diffusers.FlowMatchEulerDiscreteScheduler())
        with pytest.raises(SolverError, match="text_mask"):
            flow(state(channels=2), 0.4, {**words(), "text_mask": mask})


def test_sdxl_is_given_its_sizes():
    network = unet_condition(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=POOLED + 24,
    )
    x, said = state(), words()
    outs = [
        from_diffusers(network, diffusers.DDIMScheduler(), constants=constants)(x, 0.3, said).value
        for constants in (None, {"time_ids": (64, 64, 0, 0, 64, 64)}, {"time_ids": (999, 64, 5, 0, 64, 64)})
    ]
    assert torch.equal(outs[0], outs[1])
    assert not torch.allclose(outs[0], outs[2])


def test_a_distilled_flux_is_told_its_guidance():
    scheduler, x, said = diffusers.FlowMatchEulerDiscreteScheduler(), state(channels=2), words()
    with pytest.raises(SolverError, match="must be told its guidance"):
        from_diffusers(flux(True), scheduler)
    weak, strong = (
        from_diffusers(flux(True), scheduler, constants={"guidance": w})(x, 0.5, said) for w in (1, 9)
    )
    assert not torch.allclose(weak.value, strong.value)


def test_what_a_network_needs_is_said_in_one_line():
    scheduler, x = diffusers.DDIMScheduler(), state()
    labelled, plain, text = (
        from_diffusers(n, scheduler) for n in (unet(classes=10), unet(), unet_condition())
    )
    said = words()
    cases = {
        "labels": lambda: labelled(x, 0.5),
        "null_label": lambda: labelled(x, 0.5, {"label": torch.tensor([10, 0, 0])}),
        "from 0 to 9": lambda: labelled(x, 0.5, {"label": torch.tensor([0, 1, 99])}),
        "'label' must be a tensor": lambda: labelled(x, 0.5, {"label": torch.tensor([1])}),
        "unknown condition": lambda: plain(x, 0.5, {"label": torch.tensor([1, 1, 1])}),
        "takes 1 channels": lambda: plain(state(channels=3), 0.5),
        "conditioned on text": lambda: text(x, 0.5),
        "'text' must be a tensor": lambda: text(x, 0.5, {"text": said["text"][..., :5]}),
        "did you mean 'text'": lambda: text(x, 0.5, {"txt": said["text"]}),
        "unconditional=": lambda: text(x, 0.5, {"text": said["text"], "text_mask": torch.zeros(3, 5)}),
        "none of the network's labels": lambda: from_diffusers(unet(classes=10), scheduler, null_label=10),
        "does not fit": lambda: from_diffusers(
            unet_condition(), scheduler, unconditional={"text": torch.zeros(1, 3)}
        ),
        "takes no guidance": lambda: from_diffusers(unet(), scheduler, constants={"guidance": 3.0}),
        "unknown constant": lambda: from_diffusers(unet(), scheduler, constants={"guidence": 3.0}),
        "unknown unconditional": lambda: from_diffusers(
            unet(), scheduler, unconditional={"text": torch.zeros(1, 3)}
        ),
        "answers 2": lambda: from_diffusers(unet(in_channels=3, out_channels=2), scheduler),
        "class of network": lambda: from_diffusers(torch.nn.Linear(1, 1), scheduler),
        "give its scheduler": lambda: from_diffusers(unet()),
        "takes a folder": lambda: from_diffusers(3, scheduler),
        "learned": lambda: from_diffusers(
            unet(time_embedding_type="learned", num_train_timesteps=1000), scheduler
        ),
    }
    for text_of_error, act in cases.items():
        with pytest.raises(SfumatoError) as caught:
            act()
        assert text_of_error in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_learned_variance_is_kept_apart():
    denoiser = from_diffusers(dit(), diffusers.DDPMScheduler(variance_type="learned_range"))
    x, label = state(), {"label": torch.tensor([1, 2, 3])}
    prediction = denoiser(x, 0.5, label)
    with torch.no_grad():
        whole = denoiser.network.model(
            x, timestep=torch.full((3,), 499.5), class_labels=label["label"]
        ).sample
    assert torch.allclose(prediction.value, whole[:, :1])
    assert torch.allclose(prediction.variance, whole[:, 1:])
    levels = UniformGrid().levels(denoiser.process, 4)
    solver = build_solver("ancestral", variance="learned")
    drawn = sample(denoiser, Noise(0, 3), (1, 8, 8), solver=solver, levels=levels, condition=label)
    assert bool(drawn.isfinite().all())
    with pytest.raises(BundleError, match="learned"):
        from_diffusers(dit(), diffusers.DDPMScheduler(variance_type="learned"))


# --- folders ---


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", **BETAS["zero terminal"])
    diffusers.DDIMPipeline(unet=unet(classes=11), scheduler=scheduler).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_a_pipeline_and_its_parts_are_one_denoiser(pipeline: Path):
    whole = diffusers.DDIMPipeline.from_pretrained(pipeline)
    label, x = {"label": torch.tensor([1, 2, 3])}, state()
    sources = [(pipeline,), (str(pipeline),), (whole,), (whole.unet, whole.scheduler),
               (whole.unet, pipeline / "scheduler"), (whole.unet, dict(whole.scheduler.config))]  # fmt: skip
    values = [from_diffusers(*source)(x, 0.6, label).x0 for source in sources]
    assert all(torch.equal(value, values[0]) for value in values)


def test_a_folder_is_a_model_for_everything_that_takes_one(pipeline: Path, tmp_path: Path):
    model = sfumato.load(pipeline)
    assert model.domain.shape == (1, 8, 8)
    assert len(model.classes) == 11
    drawn = model.sample(4, condition={"label": [1, 2, 3, 4]}, seed=3, steps=5)
    alone = model.sample(indices=[2], condition={"label": 3}, seed=3, steps=5)
    assert torch.allclose(drawn[2:3], alone, atol=1e-5)
    with pytest.raises(BundleError, match="guidance 1"):
        model.sample(1, condition={"label": 1}, guidance=2.0)
    guidable = load_diffusers(pipeline, null_label=10)
    assert len(guidable.classes) == 10
    guided = guidable.sample(2, condition={"label": 1}, guidance=2.0, steps=5)
    sfumato.save(guidable, tmp_path / "bundle")  # and so a pipeline becomes a bundle
    again = sfumato.load(tmp_path / "bundle").sample(2, condition={"label": 1}, guidance=2.0, steps=5)
    assert torch.equal(guided, again)


def test_a_network_of_eps_starts_where_it_says_something(tmp_path: Path):
    scheduler = diffusers.DDPMScheduler(**BETAS["cosine"])
    diffusers.DDPMPipeline(unet=unet(), scheduler=scheduler).save_pretrained(tmp_path / "p")
    model = sfumato.load(tmp_path / "p")
    first = model.sampling.grid.levels(model.denoiser.process, 4)[0]
    assert first.sigma / first.alpha == pytest.approx(160)
    assert bool(model.sample(2, steps=4).isfinite().all())


def test_the_command_line_samples_and_inspects_a_folder(pipeline: Path, tmp_path: Path, capsys):
    from sfumato.cli import main

    for arguments in (
        ["sample", str(pipeline), "-n", "3", "--steps", "3", "--out", str(tmp_path / "out")],
        ["inspect", str(pipeline)],
        ["inspect", str(pipeline), "--json"],
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 0
        out = capsys.readouterr().out
        if arguments[0] == "inspect" and len(arguments) == 2:
            assert "UNet2DModel" in out
            assert "Table(1000 entries" in out
    assert json.loads(out)["format"] == "diffusers"
    assert len(list((tmp_path / "out").glob("*.png"))) == 3


def test_names_of_labels_come_from_the_pipeline_and_differ(tmp_path: Path):
    names = {str(k): "crane" if k in (2, 7) else f"thing {k}" for k in range(10)}
    scheduler = diffusers.DDIMScheduler()
    diffusers.DiTPipeline(dit(), None, scheduler).save_pretrained(tmp_path / "p")
    edit(tmp_path / "p" / "model_index.json", id2label=names)
    model = sfumato.load(tmp_path / "p")
    assert model.classes[0] == "thing 0"
    assert {model.classes[2], model.classes[7]} == {"crane (2)", "crane (7)"}
    assert model.sample(1, condition={"label": "thing 4"}, guidance=1.5, steps=2).shape == (1, 1, 8, 8)


def test_shards_are_read_and_must_lie_beside_their_index(pipeline: Path, tmp_path: Path):
    folder = pipeline / "unet"
    whole = sfumato.load(pipeline).sample(2, condition={"label": 1}, steps=2)
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    names = {
        key: f"diffusion_pytorch_model-0000{1 + k % 2}-of-00002.safetensors" for k, key in enumerate(weights)
    }
    for name in set(names.values()):
        save_file(
            {key: weights[key] for key in weights if names[key] == name}, folder / name, {"format": "pt"}
        )
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    assert torch.equal(sfumato.load(pipeline).sample(2, condition={"label": 1}, steps=2), whole)
    shutil.copy(folder / next(iter(names.values())), tmp_path / "stray.safetensors")
    index.write_text(json.dumps({"weight_map": names | {next(iter(names)): "../../stray.safetensors"}}))
    assert "beside it" in refused(pipeline)
    index.write_text(json.dumps({"weight_map": names | {next(iter(names)): "missing.safetensors"}}))
    assert "lacks missing.safetensors" in refused(pipeline)


def refused(folder: Path, **settings: Any) -> str:
    with pytest.raises(BundleError) as caught:
        load_diffusers(folder, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def no_scheduler(folder: Path) -> None:
    edit(folder / "model_index.json", scheduler=[None, None])


def no_scheduler_file(folder: Path) -> None:
    shutil.rmtree(folder / "scheduler")


def unknown_prediction(folder: Path) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type="epsilom")


def unknown_scheduler(folder: Path) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", _class_name="ScoreSdeVeScheduler")


def bad_betas(folder: Path) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    edit(path, trained_betas=[0.5, -0.5, 0.1], rescale_betas_zero_snr=False)


def wild_betas(folder: Path) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", beta_schedule="of my own")


def huge(folder: Path) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", num_train_timesteps="many")


def pickled(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(
        folder / "unet" / "diffusion_pytorch_model.bin"
    )


def corrupt_weights(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def other_weights(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights.pop("conv_in.weight")
    save_file(weights, path, {"format": "pt"})


def other_shapes(folder: Path) -> None:
    edit(folder / "unet" / "config.json", block_out_channels=[12, 24])


def nonsense_config(folder: Path) -> None:
    edit(folder / "unet" / "config.json", block_out_channels="wide")


def corrupt_json(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text("{" * 100_000)


def cut_json(folder: Path) -> None:
    (folder / "model_index.json").write_text('{"unet": [')


def list_json(folder: Path) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text("[]")


def endless_json(folder: Path) -> None:
    with open(folder / "unet" / "config.json", "ab") as file:
        file.truncate(2**25)


def own_pipeline(folder: Path) -> None:
    edit(folder / "model_index.json", _class_name=["pipeline_of_mine", "Mine"])
    (folder / "pipeline_of_mine.py").write_text("raise SystemExit('ran')")


def own_network(folder: Path) -> None:
    edit(folder / "model_index.json", unet=["unet_of_mine", "UNet2DModel"])
    (folder / "unet" / "unet_of_mine.py").write_text("raise SystemExit('ran')")


def own_class(folder: Path) -> None:
    edit(folder / "unet" / "config.json", _class_name="../../os.system")


def auto_map(folder: Path) -> None:
    edit(folder / "unet" / "config.json", auto_map={"AutoModel": "mine.Mine"})


def other_network(folder: Path) -> None:
    edit(folder / "unet" / "config.json", _class_name="UNet1DModel")


def two_networks(folder: Path) -> None:
    edit(folder / "model_index.json", transformer=["diffusers", "DiTTransformer2DModel"])


def with_vae(folder: Path) -> None:
    edit(folder / "model_index.json", vae=["diffusers", "AutoencoderKL"])


REFUSALS = {
    no_scheduler: "no scheduler",
    no_scheduler_file: "scheduler_config.json",
    unknown_prediction: "did you mean 'epsilon'",
    unknown_scheduler: "unknown scheduler",
    bad_betas: "describes no noise schedule",
    wild_betas: "refuses its config",
    huge: "num_train_timesteps",
    pickled: "pickle",
    corrupt_weights: "does not hold",
    other_weights: "conv_in.weight",
    other_shapes: "does not hold",
    nonsense_config: "does not hold",
    corrupt_json: "not whole JSON",
    cut_json: "not whole JSON",
    list_json: "JSON object",
    endless_json: "bytes long",
    own_pipeline: "code of its own",
    own_network: "not run",
    own_class: "unknown class",
    auto_map: "code of its own",
    other_network: "unknown class",
    two_networks: "one network",
    with_vae: "from_diffusers",
}


@pytest.mark.parametrize("damage", REFUSALS, ids=lambda f: f.__name__)
def test_a_folder_that_cannot_be_trusted_is_refused_in_one_line(pipeline: Path, damage):
    damage(pipeline)
    assert REFUSALS[damage] in refused(pipeline)


def test_folders_that_are_none_and_weights_of_another_variant(pipeline: Path, tmp_path: Path):
    assert "no such folder" in refused(tmp_path / "nowhere")
    assert "model_index.json" in refused(tmp_path)
    path = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert "name its variant" in refused(pipeline)
    assert load_diffusers(pipeline, variant="fp16").domain.channels == 1


def test_without_diffusers_the_extra_is_named(monkeypatch, pipeline: Path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtra, match=r"sfumato\[diffusers\]"):
        from_diffusers(pipeline)


def test_many_threads_share_one_denoiser(pipeline: Path):
    model = load_diffusers(pipeline, null_label=10)

    def draw(seed: int) -> torch.Tensor:
        return model.sample(2, condition={"label": seed}, seed=seed, steps=4, guidance=1.5)

    apart = [draw(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(draw, range(8)))
    assert all(torch.equal(*pair) for pair in zip(apart, together, strict=True))


def test_a_network_in_half_precision_is_asked_in_its_own():
    network = unet().to(torch.bfloat16)
    denoiser = from_diffusers(network, diffusers.DDIMScheduler())
    assert denoiser(state(), 0.3).x0.dtype == torch.float32
    assert isinstance(denoiser.network, Borrowed)


# --- ONNX ---

ONNX = importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime")
needs_onnx = pytest.mark.skipif(not ONNX, reason="needs sfumato[onnx]")


class Small(torch.nn.Module):
    """y = W x + u noise + E[label], for states (batch, 2): the graph below, in torch."""

    kind, config = "small", {"classes": 3}

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.loud = torch.nn.Linear(2, 2), torch.nn.Linear(1, 2)
        self.table = torch.nn.Embedding(4, 2)

    def forward(self, x, told, condition=None):
        label = condition["label"] if condition else torch.full((len(x),), 3)
        return self.mix(x) + self.loud(told[:, None].to(x.dtype)) + self.table(label)


def write_onnx(path: Path, small: Small, *, batch: Any = "batch", outer: str | None = None) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    arrays = {"W": small.mix.weight.T, "b": small.mix.bias, "u": small.loud.weight.T, "c": small.loud.bias}
    arrays |= {"E": small.table.weight}
    weights = [numpy_helper.from_array(a.detach().numpy().copy(), name) for name, a in arrays.items()]
    weights.append(numpy_helper.from_array(np.array([1], dtype=np.int64), "axis"))
    nodes = [
        helper.make_node("Gemm", ["x", "W", "b"], ["mixed"]),
        helper.make_node("Unsqueeze", ["sigma", "axis"], ["column"]),
        helper.make_node("Gemm", ["column", "u", "c"], ["loud"]),
        helper.make_node("Gather", ["E", "digit"], ["said"]),
        helper.make_node("Sum", ["mixed", "loud", "said"], ["answer"]),
        helper.make_node("Identity", ["mixed"], ["aside"]),
    ]
    entry = helper.make_tensor_value_info
    inputs = [entry("x", TensorProto.FLOAT, [batch, 2]), entry("sigma", TensorProto.FLOAT, [batch]),
              entry("digit", TensorProto.INT64, [batch])]  # fmt: skip
    outputs = [entry(name, TensorProto.FLOAT, [batch, 2]) for name in ("answer", "aside")]
    graph = helper.make_graph(nodes, "small", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if outer:
        onnx.save(model, path, save_as_external_data=True, location="weights.data", size_threshold=0)
        if outer != "weights.data":
            model = onnx.load(path, load_external_data=False)
            for tensor in model.graph.initializer:
                for word in tensor.external_data:
                    if word.key == "location":
                        word.value = outer
            path.write_bytes(model.SerializeToString())
    else:
        path.write_bytes(model.SerializeToString())
    return path


SAID = {
    "inputs": {"x": "x", "noise": "sigma", "label": "digit"}, "output": "answer", "schedule": {"kind": "edm"},
    "predicts": "edm", "clock": "edm", "scaled": True, "sigma_data": 0.5, "classes": 3,
}  # fmt: skip


@needs_onnx
@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_an_onnx_graph_is_the_denoiser_that_torch_makes(tmp_path: Path, batch):
    small = Small()
    path = write_onnx(tmp_path / "small.onnx", small, batch=batch)
    theirs = sfumato.adapters.from_onnx(path, **SAID)
    ours = sfumato.Denoiser(small, Gaussian(EDM(), 0.5), "edm")
    x, label = Noise(0, 4).normal(torch.empty(4, 2)), {"label": torch.tensor([0, 1, 2, 3])}
    with torch.no_grad():
        for t in (0.0, 0.37, 1.0, torch.tensor([0.1, 0.2, 0.3, 0.4])):
            assert torch.allclose(theirs(x, t, label).x0, ours(x, t, label).x0, atol=1e-6)
        assert torch.allclose(theirs(x, 0.5).x0, ours(x, 0.5).x0, atol=1e-6), (
            "no label is the label `classes`"
        )
        if batch == "batch":
            check_denoiser(theirs, x, label)
            guided = [ClassifierFree(d, 2.0, 3)(x, 0.5, label).x0 for d in (theirs, ours)]
            assert torch.allclose(*guided, atol=1e-5)
            levels = UniformGrid().levels(theirs.process, 5)
            drawn = [
                sample(d, Noise(0, 4), (2,), solver=DDIM(), levels=levels, condition=label)
                for d in (theirs, ours)
            ]
            assert torch.allclose(*drawn, atol=1e-4)
        if batch == 4:
            with pytest.raises(SolverError, match="4 samples at a time, not 3"):
                theirs(x[:3], 0.5)


@needs_onnx
def test_what_is_said_may_lie_beside_the_file(tmp_path: Path):
    path = write_onnx(tmp_path / "small.onnx", Small())
    (tmp_path / "small.json").write_text(json.dumps(SAID))
    x = Noise(0, 4).normal(torch.empty(4, 2))
    beside, given = sfumato.adapters.from_onnx(path), sfumato.adapters.from_onnx(path, **SAID)
    assert torch.equal(beside(x, 0.5).x0, given(x, 0.5).x0)
    assert sfumato.adapters.from_onnx(path, predicts="x0", endpoint=True).endpoint
    assert not beside.endpoint


@needs_onnx
def test_outer_weights_are_read_from_the_folder_only(tmp_path: Path, monkeypatch):
    (tmp_path / "in").mkdir()
    small, x = Small(), Noise(0, 4).normal(torch.empty(4, 2))
    plain = sfumato.adapters.from_onnx(write_onnx(tmp_path / "plain.onnx", small), **SAID)(x, 0.5).x0
    path = write_onnx(tmp_path / "in" / "small.onnx", small, outer="weights.data")
    assert torch.equal(sfumato.adapters.from_onnx(path, **SAID)(x, 0.5).x0, plain)
    secret = tmp_path / "secret.data"
    shutil.copy(tmp_path / "in" / "weights.data", secret)
    for place in ("../secret.data", str(secret), "missing.data"):
        for name in ("small.onnx", "weights.data"):
            (tmp_path / "in" / name).unlink(missing_ok=True)
        write_onnx(path, small, outer=place)
        with pytest.raises(BundleError, match=r"outside its own folder|missing"):
            sfumato.adapters.from_onnx(path, **SAID)
    (tmp_path / "in" / "link.data").symlink_to(secret)
    for name in ("small.onnx", "weights.data"):
        (tmp_path / "in" / name).unlink()
    write_onnx(path, small, outer="link.data")
    with pytest.raises(BundleError, match="outside its own folder"):
        sfumato.adapters.from_onnx(path, **SAID)
    monkeypatch.setattr("sfumato.adapters.onnx_file.LARGEST", 100)
    with pytest.raises(BundleError, match="at most 100"):
        sfumato.adapters.from_onnx(tmp_path / "plain.onnx", **SAID)


@needs_onnx
def test_what_does_not_fit_an_onnx_graph_is_said_in_one_line(tmp_path: Path):
    path, read = write_onnx(tmp_path / "small.onnx", Small()), sfumato.adapters.from_onnx
    good = read(path, **SAID)
    (tmp_path / "noise.onnx").write_bytes(os.urandom(300))
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:-40])
    (tmp_path / "empty.onnx").write_bytes(b"")
    x, said = torch.zeros(4, 2), SAID["inputs"]
    cases = {
        "there is no": lambda: read(tmp_path / "none.onnx", **SAID),
        "not a whole ONNX model": lambda: read(tmp_path / "noise.onnx", **SAID),
        "cut.onnx": lambda: read(tmp_path / "cut.onnx", **SAID),
        "graph is empty": lambda: read(tmp_path / "empty.onnx", **SAID),
        "does not say its inputs": lambda: read(path),
        "did you mean 'predicts'": lambda: read(path, **SAID, predict="x0"),
        "did you mean 'sigma'": lambda: read(path, **SAID | {"inputs": said | {"noise": "sigmas"}}),
        "which one is 'noise'": lambda: read(path, **SAID | {"inputs": {"x": "x", "label": "digit"}}),
        "must be said once": lambda: read(path, **SAID | {"inputs": {"x": "x", "noise": "sigma"}}),
        "unknown output": lambda: read(path, **SAID | {"output": "answers"}),
        "say which one": lambda: read(path, **{k: v for k, v in SAID.items() if k != "output"}),
        "unknown prediction": lambda: read(path, **SAID | {"predicts": "noise"}),
        "unknown clock": lambda: read(path, **SAID | {"clock": "sun"}),
        "unknown schedule": lambda: read(path, **SAID | {"schedule": {"kind": "edn"}}),
        "cannot be": lambda: read(path, **SAID | {"classes": "three"}),
        "takes (any, 2)": lambda: good(torch.zeros(4, 3), 0.5),
        "unknown condition": lambda: good(x, 0.5, {"text": x}),
        "'label' must be a tensor": lambda: good(x, 0.5, {"label": torch.zeros(3, dtype=torch.long)}),
        "onnxruntime refused": lambda: good(x, 0.5, {"label": torch.full((4,), 99)}),
    }
    for text_of_error, act in cases.items():
        with pytest.raises(SfumatoError) as caught:
            act()
        assert text_of_error in str(caught.value)
        assert "\n" not in str(caught.value)


@needs_onnx
def test_many_threads_share_one_onnx_graph(tmp_path: Path):
    denoiser = sfumato.adapters.from_onnx(write_onnx(tmp_path / "small.onnx", Small()), **SAID)
    levels = UniformGrid().levels(denoiser.process, 8)

    def draw(seed: int) -> torch.Tensor:
        return sample(denoiser, Noise(seed, 5), (2,), solver=build_solver("heun"), levels=levels)

    apart = [draw(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert all(torch.equal(*pair) for pair in zip(apart, pool.map(draw, range(8)), strict=True))


TERRAIN = (
    os.environ.get("SFUMATO_TERRAIN")
    or getattr(importlib.util.find_spec("terrain_diffusion"), "submodule_search_locations", [None])[0]
)


@needs_onnx
@pytest.mark.slow
@pytest.mark.skipif(
    not TERRAIN, reason="needs adaptive-terrain-diffusion, or its unpacked folder in SFUMATO_TERRAIN"
)
def test_a_stranger_s_one_step_model_is_the_map_that_its_own_code_calls():
    import onnxruntime

    path = Path(str(TERRAIN)) / "weights" / "terrain_consistency_unet_difficulty100.onnx"
    denoiser = sfumato.adapters.from_onnx(
        path,
        inputs={"x": "noisy", "noise": "sigma", "difficulty": "difficulty"},
        schedule=EDM(0.002, 80.0), sigma_data=0.5, predicts="x0", clock="sigma", endpoint=True,
    )  # fmt: skip
    assert denoiser.endpoint
    condition = {"difficulty": torch.tensor([0.0, 1.0])}
    levels = [denoiser.process.level(1.0), CLEAN]
    drawn = sample(denoiser, Noise(0, 2), (1, 128, 128), solver=DDIM(), levels=levels, condition=condition)
    x = denoiser.process.prior(torch.empty(2, 1, 128, 128), Noise(0, 2).at(0), levels[0])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {"noisy": x.numpy(), "sigma": np.full(2, 80.0, np.float32), "difficulty": np.float32([0, 1])}
    theirs = torch.from_numpy(session.run(["denoised"], feed)[0])
    assert torch.allclose(drawn, theirs, atol=1e-5)
    assert float(drawn[1].std()) > float(drawn[0].std()), "harder terrain is rougher"
    quiet = denoiser.process.level(0.0)
    assert float((denoiser(drawn, quiet, condition).x0 - drawn).abs().max()) < 0.05, "f(x, sigma_min) is x"


# --- tuned, and its likelihood ---


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> sfumato.Model:
    """A pipeline's model of 4 x 4 pixels: few enough for an exact trace."""
    folder = tmp_path_factory.mktemp("small") / "pipeline"
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", **BETAS["zero terminal"])
    network = unet(sample_size=4)
    with torch.no_grad():  # a new network answers little but 0
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    diffusers.DDIMPipeline(unet=network, scheduler=scheduler).save_pretrained(folder)
    return sfumato.load(folder)


def test_an_adapted_model_is_tuned_to_its_own_trajectories(small: sfumato.Model):
    """On starts that no tuning has seen the solver is closer to a fine one than the table that it was fitted from."""
    found = small.tune(3, trajectories=48, effort=Effort(seconds=20, rounds=6))
    assert found.errors["tuned"].mean <= found.errors["untuned Adams"].mean
    assert (found.solver.steps, found.solver.conditional) == (3, False)
    assert found.solver.weights == small.fingerprint
    process, noise = small.denoiser.process, Noise(99, 32)
    first = noisiest(process)
    x = process.prior(torch.empty(32, *small.domain.shape), noise.at(0), first)

    def end(solver: Tuned) -> torch.Tensor:
        with torch.no_grad():
            return integrate(small.denoiser, solver, solver.grid.levels(process, solver.steps), x, noise)

    fine = end(adams(process, 80, 3))
    gaps = [
        (end(solver) - fine).square().flatten(1).mean(1).sqrt() for solver in (found.solver, found.untuned)
    ]
    assert float(gaps[0].mean()) <= float(gaps[1].mean())
    assert float(gaps[0].mean()) < 0.5 * float((fine - x).square().mean().sqrt())
    drawn = dataclasses.replace(small, tuned=(found.solver,)).sample(2, steps=3)
    assert torch.equal(drawn, small.sample(2, solver=found.solver))


def test_the_probes_of_an_adapted_model_agree_with_its_exact_trace(small: sfumato.Model):
    x = small.sample(12, steps=6, seed=1).clamp(-1, 1)
    exact = small.log_likelihood(x, steps=4)
    found = small.log_likelihood(x, steps=4, probes=8, seed=2)
    # the same steps on both sides, so that probes alone differ: t of 7 degrees of freedom, 12 pictures at 99.9 %
    assert bool(((found.nats - exact.nats).abs() <= 5.4 * found.deviation).all())
    assert bool((found.deviation > 0).all())
    assert bool((exact.deviation == 0).all())
    low, high = found.interval()
    inside = (low <= exact.nats) & (exact.nats <= high)
    assert int(inside.sum()) >= 9  # of 12 at 95 %: fewer happens once in five thousand
    other = small.log_likelihood(x + 0.5, steps=4)
    assert float((other.nats - exact.nats).abs().min()) > 1e-3
