"""Models of others: their own code's numbers at their times, nothing that jumps between, one line for what is wrong."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from diffusers_networks import BETAS, dit, state, unet
from sfumato.adapters import Adapted, Reading, from_diffusers, read_scheduler
from sfumato.denoisers import ClassifierFree, check_denoiser
from sfumato.errors import BundleError, SfumatoError, SolverError
from sfumato.noise import Noise
from sfumato.processes import CLEAN, EDM, Flow, Gaussian, Shifted, Table, check_process
from sfumato.solvers import (
    DDIM,
    SOLVERS,
    KarrasGrid,
    LogSNRGrid,
    UniformGrid,
    build_solver,
    integrate,
    sample,
)

diffusers = pytest.importorskip("diffusers", reason="needs sfumato[diffusers]")


TEXT, POOLED = 12, 10


def unet_condition(**config: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, cross_attention_dim=TEXT, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **config,
    ).eval()  # fmt: skip


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
