"""Models of diffusers, trained here by diffusers' own means, and sampled by their samplers and by ours.

    python benchmarks/adapters.py                        train three small models (minutes each), then all tables
    python benchmarks/adapters.py --only agree           one part: train, agree, sample or terrain
    python benchmarks/adapters.py --terrain FOLDER       also the one-step terrain model, in its unpacked package

The models know handwritten digits and their labels, and are saved as pipeline folders under --work:

    unet-eps   UNet2DModel, epsilon, DDPM's linear betas
    unet-v     UNet2DModel, v_prediction, betas rescaled to zero terminal SNR
    dit-flow   DiTTransformer2DModel, flow matching with shift 2

agree: at each of their 1000 times our Prediction.x0 against their pred_original_sample; our DDIM at their time steps
against their DDIM, where its steps are whole and where they are not. sample: at equal evaluations, the distance (RMS a
pixel, and the median of samples) to the end of the same trajectory, and the quality that the recipe's judge sees:
Frechet distance and agreement with the asked digit. Clipping is off, for them as for us, but where it is named.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

MODELS = ("unet-eps", "unet-v", "dit-flow")
EVALUATIONS = (8, 16, 32)


def parts(name: str):
    """A fresh network of diffusers with the scheduler it is trained with."""
    import diffusers

    torch.manual_seed(0)
    if name == "dit-flow":
        network = diffusers.DiTTransformer2DModel(
            num_attention_heads=4, attention_head_dim=24, in_channels=1, out_channels=1, num_layers=4, sample_size=8,
            patch_size=2, num_embeds_ada_norm=10,
        )  # fmt: skip
        return network, diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)
    network = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(32, 64), layers_per_block=1,
        norm_num_groups=8, attention_head_dim=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), num_class_embeds=11,
    )  # fmt: skip
    if name == "unet-eps":
        return network, diffusers.DDIMScheduler(clip_sample=False)
    return network, diffusers.DDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )


def digits():
    """(train, held out) of the digits recipe."""
    from sfumato.recipes import read_recipe
    from sfumato.recipes.run import read_data

    return read_data(read_recipe("digits"))


def train(name: str, folder: Path, seconds: float) -> None:
    """Train with diffusers' scheduler and average for a budget of seconds; save a pipeline folder."""
    import diffusers
    from diffusers.training_utils import EMAModel
    from torch.nn import functional as F

    data = digits()[0]
    images, labels = data.tensor(), torch.from_numpy(data.targets).long()
    network, scheduler = parts(name)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-3)
    average = EMAModel(network.parameters(), decay=0.998, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    step, began, losses = 0, time.monotonic(), []
    while (spent := time.monotonic() - began) < seconds:
        for group in optimizer.param_groups:  # warm-up, then a fall to a twentieth
            group["lr"] = 1e-3 * min(1, (step + 1) / 100) * (1 - 0.95 * spent / seconds)
        chosen = torch.randint(0, len(images), (128,))
        x0, noise, label = images[chosen], torch.randn(128, *images.shape[1:]), labels[chosen]
        if name == "dit-flow":  # which drops labels by itself
            sigma = scheduler.sigmas[torch.randint(0, 1000, (128,))]
            share = sigma.reshape(-1, 1, 1, 1)
            answer = network(
                (1 - share) * x0 + share * noise, timestep=1000 * sigma, class_labels=label
            ).sample
            target = noise - x0
        else:
            t = torch.randint(0, 1000, (128,))
            label = torch.where(torch.rand(128) < 0.1, 10, label)
            answer = network(scheduler.add_noise(x0, noise, t), t, class_labels=label).sample
            target = noise if name == "unet-eps" else scheduler.get_velocity(x0, noise, t)
        loss = F.mse_loss(answer, target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.step(network.parameters())
        losses.append(float(loss.detach()))
        step += 1
    average.copy_to(network.parameters())
    if name == "dit-flow":
        pipeline = diffusers.DiTPipeline(network, None, scheduler)
    else:
        pipeline = diffusers.DDIMPipeline(unet=network, scheduler=scheduler)
    pipeline.save_pretrained(folder)
    late = losses[-len(losses) // 5 :]
    print(f"{name}: {step} steps in {seconds:.0f} s, loss {sum(late) / len(late):.4f}", flush=True)


def load(name: str, work: Path):
    """(our model, their network, their scheduler) of a saved pipeline, with the label that means none."""
    import diffusers

    from sfumato.adapters import load_diffusers

    model = load_diffusers(work / name, **({} if name == "dit-flow" else {"null_label": 10}))
    kind = diffusers.FlowMatchEulerDiscreteScheduler if name == "dit-flow" else diffusers.DDIMScheduler
    return model, model.denoiser.network.model, kind.from_pretrained(work / name / "scheduler")


def ask(network, x, t, label):
    """Their network, as their pipelines ask it."""
    return network(x, timestep=t.expand(len(x)), class_labels=label, return_dict=False)[0]


@torch.no_grad()
def theirs(network, scheduler, x, label, steps: int):
    """The loop of their pipelines from a normal x: (samples, evaluations)."""
    scheduler.set_timesteps(steps)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(ask(network, seen, t, label), t, x).prev_sample
    return x, len(scheduler.timesteps)


# --- agree ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def agree(work: Path) -> dict:
    """The largest relative gap between their numbers and ours."""
    import diffusers

    from sfumato.noise import Noise
    from sfumato.solvers import DDIM, integrate

    found: dict = {}
    for name in MODELS:
        model, network, scheduler = load(name, work)
        denoiser, x = model.denoiser, Noise(0, 4).normal(torch.empty(4, 1, 8, 8))
        label, worst = torch.tensor([0, 3, 6, 9]), 0.0
        row: dict = {}
        if name == "dit-flow":
            for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=True):
                want = x - sigma * ask(network, x, t, label)  # their x_0: x_t - sigma v
                got = denoiser(x, denoiser.levels([float(t)])[0], {"label": label}).x0
                worst = max(worst, float((got - want).abs().max() / want.abs().max()))
            plans = [("euler, 10 steps", scheduler, 10)]
        else:
            scheduler.set_timesteps(1000)
            for i in range(1000):
                t = torch.tensor(i)
                want = scheduler.step(ask(network, x, t, label), i, x).pred_original_sample
                got = denoiser(x, i / 999, {"label": label}).x0
                worst = max(worst, float((got - want).abs().max() / want.abs().max()))
            plans = [
                (f"ddim, {spacing}, {steps} steps",
                 diffusers.DDIMScheduler.from_config(scheduler.config, timestep_spacing=spacing), steps)
                for spacing, steps in (("leading", 20), ("trailing", 20), ("trailing", 30), ("linspace", 30))
            ]  # fmt: skip
        row["x0, largest relative gap over 1000 times"] = worst
        for what, sampler, steps in plans:
            out, _ = theirs(network, sampler, x, label, steps)
            levels = denoiser.levels(sampler.timesteps.tolist())
            ours = integrate(denoiser, DDIM(), levels, x, Noise(0, 4), {"label": label})
            row[what] = float((ours - out).abs().max() / out.abs().max())
        found[name] = row
        for what, value in row.items():
            print(f"{name:9s} {what:42s} {value:.1e}", flush=True)
    return found


# --- sample -----------------------------------------------------------------------------------------------------


def their_samplers(name: str, scheduler):
    """Their samplers for a model, by name, each with how many evaluations a step takes."""
    import diffusers as d

    if name == "dit-flow":
        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 2.0}
        return {
            "FlowMatchEuler": (scheduler, 1),
            "FlowMatchHeun": (d.FlowMatchHeunDiscreteScheduler(shift=2.0), 2),
            "DPM++2M": (d.DPMSolverMultistepScheduler(**flow), 1),
            "UniPC": (d.UniPCMultistepScheduler(**flow), 1),
        }
    keep = {"timestep_spacing": "trailing" if name == "unet-v" else "linspace"}
    made = {
        "DDIM": (d.DDIMScheduler.from_config(scheduler.config), 1),
        "DDIM, clipped": (d.DDIMScheduler.from_config(scheduler.config, clip_sample=True), 1),
        "DPM++2M": (d.DPMSolverMultistepScheduler.from_config(scheduler.config, **keep), 1),
        "UniPC": (d.UniPCMultistepScheduler.from_config(scheduler.config, **keep), 1),
        "Heun": (d.HeunDiscreteScheduler.from_config(scheduler.config, **keep), 2),
    }
    if name == "unet-eps":
        karras = d.DPMSolverMultistepScheduler.from_config(
            scheduler.config, use_karras_sigmas=True, final_sigmas_type="zero", **keep
        )
        made["DPM++2M, karras"] = (karras, 1)
    return made


def our_samplers(name: str):
    """Our deterministic solvers on the grids that a user would try first."""
    from sfumato.solvers import SOLVERS, build_grid, build_solver

    made = {f"{kind}, flow grid": (build_solver(kind), build_grid("flow"))
            for kind, cls in SOLVERS.items() if cls().stochastic is False}  # fmt: skip
    if name == "unet-eps":
        made["dpm++2m, karras grid"] = (build_solver("dpm++2m"), build_grid("karras"))
        made["dpm++2m, log-snr grid"] = (build_solver("dpm++2m"), build_grid("log-snr"))
    return made


def sampled(work: Path, samples: int, near: int, only: list[str]) -> dict:
    """For each model and sampler and cost: distance to the end of the trajectory, Frechet distance, agreement."""
    from sfumato.domains.cache import cache_folder
    from sfumato.evaluation.evaluate import Judge
    from sfumato.evaluation.features import build_features
    from sfumato.noise import Noise
    from sfumato.recipes.bench import _Labelled, labels_like
    from sfumato.solvers import FlowGrid, Heun, integrate

    train_data, held_data = digits()
    data, held = _Labelled(train_data), _Labelled(held_data)
    judge = Judge(
        data, held, build_features("classifier", train=data, held=held, folder=cache_folder() / "features")
    )
    found: dict = {}
    for name in MODELS:
        model, network, scheduler = load(name, work)
        denoiser, asked = model.denoiser, labels_like(train_data, samples)
        noise, x = Noise(1, samples), Noise(1, samples).normal(torch.empty(samples, 1, 8, 8))
        label = {"label": asked}

        def run(solver, levels, count, denoiser=denoiser, x=x, asked=asked):
            with torch.no_grad():
                return integrate(
                    denoiser, solver, levels, x[:count], Noise(1, count), {"label": asked[:count]}
                )

        exact = run(Heun(), FlowGrid().levels(denoiser.process, 250), near)

        def tell(
            what, evaluations, out, *, exact=exact, name=name, label=label, model=model, noise=noise
        ) -> None:
            gaps = (out[: len(exact)] - exact).square().flatten(1).mean(1).sqrt()
            row = {"rms": float(gaps.square().mean().sqrt()), "median": float(gaps.median())}
            images = model.domain.decode(out)
            if len(out) == samples:
                for m in judge(
                    lambda n, i=images, a=label["label"]: (i, a), ["frechet", "agreement"], samples
                ):
                    row[m.name] = m.value
                    row[f"{m.name} interval"] = [m.low, m.high]
            found.setdefault(name, {}).setdefault(what, {})[str(evaluations)] = row
            print(
                f"{name:9s} {what:32s} {evaluations:3d}  rms {row['rms']:.4f}  median {row['median']:.4f}  "
                f"frechet {row.get('frechet', float('nan')):.3f}  agreement {row.get('agreement', 0):.3f}",
                flush=True,
            )

        for evaluations in EVALUATIONS:
            for what, (sampler, each) in their_samplers(name, scheduler).items():
                if only and what not in only:
                    continue
                out, spent = theirs(network, sampler, x, asked, evaluations // each)
                tell(f"diffusers {what}", spent, out)
            for what, (solver, grid) in our_samplers(name).items():
                if only and solver.kind not in only:
                    continue
                levels = grid.levels(denoiser.process, max(evaluations // solver.evaluations, 1))
                tell(f"sfumato {what}", evaluations, run(solver, levels, samples))
    return found


# --- the one-step terrain model ---------------------------------------------------------------------------------


def terrain(folder: Path) -> dict:
    """One step of a stranger's one-step model: against its own code's numbers, and what more steps do to it."""
    import numpy as np
    import onnxruntime

    from sfumato.adapters import from_onnx
    from sfumato.noise import Noise
    from sfumato.processes import CLEAN, EDM
    from sfumato.solvers import DDIM, KarrasGrid, sample

    path = next(folder.rglob("*.onnx"))
    denoiser = from_onnx(
        path,
        inputs={"x": "noisy", "noise": "sigma", "difficulty": "difficulty"},
        schedule=EDM(0.002, 80.0), sigma_data=0.5, predicts="x0", clock="sigma", endpoint=True,
    )  # fmt: skip
    count = 8
    said = {"difficulty": torch.linspace(0, 1, count)}
    began = time.monotonic()
    levels = [denoiser.process.level(1.0), CLEAN]
    once = sample(denoiser, Noise(0, count), (1, 128, 128), solver=DDIM(), levels=levels, condition=said)
    seconds = time.monotonic() - began
    x = denoiser.process.prior(once, Noise(0, count).at(0), levels[0])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {
        "noisy": x.numpy(),
        "sigma": np.full(count, 80, np.float32),
        "difficulty": said["difficulty"].numpy(),
    }
    own = torch.from_numpy(session.run(None, feed)[0])
    eight = sample(
        denoiser, Noise(0, count), (1, 128, 128), solver=DDIM(),
        levels=KarrasGrid().levels(denoiser.process, 8), condition=said,
    )  # fmt: skip
    quiet = denoiser(once, 0.0, said).x0
    half = denoiser.process.level(0.5)
    renoised = denoiser.process.corrupt(once, half, Noise(5, count).normal(once))
    again = denoiser(renoised, half, said).x0

    def rough(height):
        return float(height.diff(dim=-1).square().mean().sqrt())

    row = {
        "one step, largest gap to its own session": float((once - own).abs().max()),
        "one step, seconds a terrain": seconds / count,
        "f(x, sigma_min) against x": float((quiet - once).abs().max()),
        "roughness of one step": rough(once),
        "roughness after 8 steps of DDIM": rough(eight),
        "roughness after new noise and one more step": rough(again),
        "RMS between 1 step and 8 steps of DDIM": float((once - eight).square().mean().sqrt()),
        "spread of one step": float(once.std()),
    }
    for what, value in row.items():
        print(f"terrain   {what:44s} {value:.3g}", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/adapters"))
    parser.add_argument("--seconds", type=float, default=240, help="of training, for each model")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--near", type=int, default=128, help="samples whose trajectory's end is computed")
    parser.add_argument("--only", choices=["train", "agree", "sample", "terrain"])
    parser.add_argument(
        "--samplers", nargs="*", default=[], help="names of theirs and kinds of ours; default all"
    )
    parser.add_argument("--terrain", type=Path, help="the unpacked package adaptive-terrain-diffusion")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    results: dict = {}
    if given.only in (None, "train"):
        for name in MODELS:
            if not (given.work / name / "model_index.json").exists():
                train(name, given.work / name, given.seconds)
    if given.only in (None, "agree"):
        results["agree"] = agree(given.work)
    if given.only in (None, "sample"):
        results["sample"] = sampled(given.work, given.samples, given.near, given.samplers)
    if given.terrain and given.only in (None, "terrain"):
        results["terrain"] = terrain(given.terrain)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
