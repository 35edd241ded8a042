"""Quality after the same wall-clock: our Fashion-MNIST recipe, and diffusers' network in its own loop and in ours.

Three contenders train for the same seconds on the same cores, *in turns* of half a minute (the others are stopped),
so that whatever else the machine does meets all of them:

    ours       the packaged recipe `fashion-mnist`
    theirs     diffusers' UNet2DModel with the loop and settings of its unconditional example: noise prediction,
               1000-step DDPM, AdamW 1e-4 (0.95, 0.999), batch 16, cosine rate after 500 warm-up steps, EMA, clip 1.0;
               pictures padded to 32×32
    borrowed   the same UNet2DModel (given our labels) under our objective, optimiser and trainer

A contender's clock starts when its data are in memory: compilation, and the short run by which ours measures its
speed to set the length of its learning-rate schedule, are on its clock. All are judged by the recipe's classifier
features on the same number of samples, with intervals; `theirs` with the best of several samplers at 10 to 50 steps,
chosen on 500 samples.

    python benchmarks/time_to_quality.py [--seconds 1200] [--samples 5000] [--work FOLDER] [--only judge]

Bars: ours at most a tenth of theirs, and at most a third of borrowed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SLICE = 30.0
CONTENDERS = ("ours", "theirs", "borrowed")
SAMPLERS = (("dpm++", 10), ("dpm++", 20), ("unipc", 10), ("unipc", 20), ("ddim", 50))


# --- contenders, each in a process of its own -------------------------------------------------------------------


def their_network(classes: int | None = None):
    """diffusers' UNet2DModel of 867 MFLOP and 2.6 M parameters for 1×32×32."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=32, in_channels=1, out_channels=1, layers_per_block=2, block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"), norm_num_groups=16, num_class_embeds=classes,
    )  # fmt: skip


def borrowed_network():
    """Their network in our convention: padded inside, told our noise level and label."""
    import torch
    from torch.nn import functional as F

    class Borrowed(torch.nn.Module):
        kind, config = "borrowed", {"classes": 10}

        def __init__(self):
            super().__init__()
            self.inner = their_network(11)

        def forward(self, x, noise_level, condition=None):
            label = torch.full((len(x),), 10) if not condition else condition["label"]
            answer = self.inner(
                F.pad(x, (2, 2, 2, 2), value=-1.0), 200 * (noise_level + 2.5), class_labels=label
            )
            return answer.sample[..., 2:-2, 2:-2]

    torch.manual_seed(0)
    return Borrowed()


def wait_for_turn() -> float:
    """Say that the data are in memory, and stop until the driver gives the first turn; the time it was given."""
    print("ready", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    return time.monotonic()


def experiment(name: str, overrides: tuple[str, ...] = ()):
    """The recipe's parts, with the borrowed network in place of ours if asked for."""
    from dataclasses import replace

    from sfumato.denoisers import Denoiser
    from sfumato.recipes import read_recipe
    from sfumato.recipes.run import set_up

    parts = set_up(read_recipe("fashion-mnist", overrides))
    if name == "borrowed":
        denoiser = Denoiser(borrowed_network(), parts.denoiser.process, parts.denoiser.parameterisation)
        parts = replace(parts, denoiser=denoiser)
    return parts


def train_ours(name: str, seconds: float, folder: Path) -> None:
    """Train under our trainer for a budget of active seconds; leaves weights.safetensors and facts.json."""
    import copy

    from safetensors.torch import save_file

    from sfumato.training import Callback, Trainer

    parts = experiment(name)
    turns = Turns(folder)
    wait_for_turn()

    class Speed(Callback):
        def __init__(self):
            self.times = []

        def on_step(self, *figures):
            self.times.append(turns.active())

    quiet = {"validate_every": 0, "preview_every": 0, "checkpoint_every": 0, "log_every": 10**9}
    config = parts.recipe.training.model_copy(update=quiet)
    probe, speed = (
        config.model_copy(update={"images": config.batch * 30, "warmup": config.batch * 10}),
        Speed(),
    )
    with tempfile.TemporaryDirectory() as spare:
        Trainer(
            copy.deepcopy(parts.denoiser), parts.objective, parts.data, probe, spare, callbacks=[speed]
        ).fit()
    times = speed.times[10:]
    rate = config.batch * (len(times) - 1) / (times[-1] - times[0])
    left = seconds - turns.active()
    images = int(0.95 * rate * left)
    print(f"{name}: {rate:.0f} images/s, {images} images in the {left:.0f} s left", flush=True)
    config = config.model_copy(update={"images": images, "log_every": 20_000})
    result = Trainer(parts.denoiser, parts.objective, parts.data, config, folder / "run").fit()
    weights = {key.removeprefix("network."): value.contiguous() for key, value in result.weights.items()}
    save_file(weights, folder / "weights.safetensors")
    write_facts(folder, images=result.images, seconds=turns.active(), finished=result.images >= images)


def train_theirs(seconds: float, folder: Path) -> None:
    """Their example's loop, until the active seconds are over."""
    import torch
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel
    from safetensors.torch import save_file
    from torch.nn import functional as F

    from sfumato.recipes import read_recipe
    from sfumato.recipes.run import read_data

    data, _ = read_data(read_recipe("fashion-mnist"))
    images = data.tensor()
    turns = Turns(folder)
    wait_for_turn()
    torch.manual_seed(0)
    model, noise_scheduler = their_network(), DDPMScheduler(1000)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    batch, step, order, rates = 16, 0, torch.randperm(len(images)), None
    while turns.active() < seconds:
        if rates is None and step == 100:  # the length of the cosine, from the speed seen; 500 warm-up steps
            total = int(step * seconds / turns.active())
            rates = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=total)
            for _ in range(step):
                rates.step()
        start = step * batch % len(images)
        if start + batch > len(images):
            order, start = torch.randperm(len(images)), 0
        clean = F.pad(images[order[start : start + batch]], (2, 2, 2, 2), value=-1.0)
        noise, t = torch.randn_like(clean), torch.randint(0, 1000, (batch,))
        loss = F.mse_loss(model(noise_scheduler.add_noise(clean, noise, t), t).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if rates is None:
            optimizer.param_groups[0]["lr"] = 1e-4 * step / 500
        optimizer.step()
        if rates is not None:
            rates.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        step += 1
    ema.copy_to(model.parameters())
    save_file(model.state_dict(), folder / "weights.safetensors")
    write_facts(folder, images=step * batch, seconds=turns.active(), finished=True)


class Turns:
    """A contender's own clock: the driver's record of the turns it has had, and the present one."""

    def __init__(self, folder: Path):
        self.path = folder / "turns.json"

    def active(self) -> float:
        """Seconds this contender has been running."""
        had = json.loads(self.path.read_text())
        return had["before"] + time.monotonic() - had["since"]


def write_facts(folder: Path, **facts: object) -> None:
    (folder / "facts.json").write_text(json.dumps(facts))


# --- the driver -------------------------------------------------------------------------------------------------


def train_all(work: Path, seconds: float) -> None:
    """Give the contenders their turns until each has had its seconds (and finishes what it is writing)."""
    running, had = {}, {}
    for name in CONTENDERS:
        folder = work / name
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            __file__,
            "--contender",
            name,
            "--seconds",
            str(seconds),
            "--work",
            str(work),
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        while (line := process.stdout.readline()) and line.strip() != "ready":
            print(line, end="")
        running[name], had[name] = process, 0.0
    while running:
        for name, process in list(running.items()):
            began = time.monotonic()
            turn = work / name / "turns.json"
            turn.with_suffix(".new").write_text(json.dumps({"before": had[name], "since": began}))
            os.replace(turn.with_suffix(".new"), turn)
            process.send_signal(signal.SIGCONT)
            try:
                left = seconds - had[name]
                if left <= 0 and name != "theirs":  # which watches its own clock
                    process.send_signal(signal.SIGTERM)  # our trainer saves and leaves
                process.wait(timeout=min(SLICE, left) if left > 0 else 120)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGSTOP)
                had[name] += time.monotonic() - began
                continue
            had[name] += time.monotonic() - began
            print(process.stdout.read(), end="")
            del running[name]
            if process.returncode:
                raise SystemExit(f"{name} failed with code {process.returncode}")
        print(", ".join(f"{name} {spent:.0f} s" for name, spent in had.items()), flush=True)


def draw_theirs(folder: Path, sampler: str, steps: int, count: int):
    """Samples of their model by one of their samplers, in [0, 1]."""
    import torch
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
    from safetensors.torch import load_file

    kinds = {"dpm++": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler, "ddim": DDIMScheduler}
    model = their_network().eval()
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    drawn = []
    with torch.no_grad():
        for start in range(0, count, 250):
            generator = torch.Generator().manual_seed(start)
            x = torch.randn(min(250, count - start), 1, 32, 32, generator=generator)
            scheduler = kinds[sampler](num_train_timesteps=1000, timestep_spacing="trailing")
            scheduler.set_timesteps(steps)
            for t in scheduler.timesteps:
                x = scheduler.step(model(x, t).sample, t, x).prev_sample
            drawn.append(((x[..., 2:-2, 2:-2] + 1) / 2).clamp(0, 1))
    return torch.cat(drawn)


def judge_all(work: Path, samples: int, out: Path) -> dict:
    """Judge all contenders; prints the table, writes the results."""
    import torch
    from safetensors.torch import load_file

    from sfumato.domains.cache import cache_folder
    from sfumato.evaluation.cost import count_flops, machine_peak
    from sfumato.evaluation.evaluate import Judge
    from sfumato.evaluation.features import build_features
    from sfumato.evaluation.receipts import machine, versions
    from sfumato.recipes.bench import _Labelled, labels_like

    parts = experiment("ours")
    train, held = _Labelled(parts.data), _Labelled(parts.held_out)
    features = build_features("classifier", train=train, held=held, folder=cache_folder() / "features")
    judge, peak = Judge(train, held, features), machine_peak(2048, 3)
    results: dict = {
        "features": features.card(),
        "samples": samples,
        "machine": machine(),
        "versions": versions(),
    }
    results["peak_gflops"] = peak

    def row(name: str, draw, flops: int, what: str) -> None:
        facts = json.loads((work / name / "facts.json").read_text())
        began = time.monotonic()
        measure = judge(draw, ["frechet"], samples)[0]
        speed = facts["images"] / facts["seconds"]
        results[name] = {
            **facts, "sampler": what, "frechet": measure.value, "low": measure.low, "high": measure.high,
            "floor": measure.floor, "mflops_forward": flops / 1e6, "images_per_second": speed,
            "share_of_peak": 3 * flops * speed / (peak * 1e9), "seconds_to_sample": time.monotonic() - began,
        }  # fmt: skip
        print(f"{name:9s} {json.dumps(results[name])}", flush=True)
        out.write_text(json.dumps(results, indent=1))

    for name in ("ours", "borrowed"):
        parts = experiment(name)
        parts.denoiser.network.load_state_dict(load_file(work / name / "weights.safetensors"))
        parts.denoiser.eval().requires_grad_(False)
        model = parts.model()

        def draw(count: int, model=model, parts=parts):
            labels = labels_like(parts.data, count)
            x = model.sample(count, condition={"label": labels}, seed=1, batch=250)
            return model.domain.decode(x), labels

        x, label = torch.zeros(1, 1, 28, 28), {"label": torch.zeros(1, dtype=torch.long)}
        plan = model.sampling
        row(name, draw, count_flops(parts.denoiser, x, 0.5, label), f"{plan.solver.kind}, {plan.steps} steps")
    tried = {}
    for sampler, steps in SAMPLERS:
        found = judge(
            lambda n, s=sampler, k=steps: (draw_theirs(work / "theirs", s, k, n), None), ["frechet"], 500
        )
        tried[f"{sampler}, {steps} steps"] = found[0].value
        print(f"theirs by {sampler}, {steps} steps, 500 samples: {found[0].value:.3f}", flush=True)
    sampler, steps = min(SAMPLERS, key=lambda pair: tried[f"{pair[0]}, {pair[1]} steps"])
    flops = count_flops(their_network(), torch.zeros(1, 1, 32, 32), 1)
    row(
        "theirs",
        lambda n: (draw_theirs(work / "theirs", sampler, steps, n), None),
        flops,
        f"{sampler}, {steps} steps",
    )
    results["theirs"]["tried"] = tried
    for other in ("theirs", "borrowed"):
        results[f"ours over {other}"] = results["ours"]["frechet"] / results[other]["frechet"]
    out.write_text(json.dumps(results, indent=1))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--work", type=Path, default=Path("runs/time-to-quality"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/time_to_quality.json"))
    parser.add_argument("--only", choices=["judge"])
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender == "theirs":
        return train_theirs(given.seconds, given.work / "theirs")
    if given.contender:
        return train_ours(given.contender, given.seconds, given.work / given.contender)
    if given.only != "judge":
        train_all(given.work, given.seconds)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    results = judge_all(given.work, given.samples, given.out)
    for other, bar in (("theirs", 0.1), ("borrowed", 1 / 3)):
        ratio = results[f"ours over {other}"]
        print(f"ours over {other}: {ratio:.3f} (bar {bar:.3f}): {'reached' if ratio <= bar else 'missed'}")
    return None


if __name__ == "__main__":
    main()
