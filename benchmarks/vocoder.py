"""A vocoder on whole held-out prompts, beside the recordings and beside Griffin-Lim from the same mel spectra.

    python benchmarks/vocoder.py runs/speech/model --out vocoder.json

What is printed of each, with 95 % intervals over prompts:

    DNSMOS                 P.835 overall; and its difference to the recording's, a pair a prompt
    word error             share of the words that Whisper tiny.en hears in the recording and not here; there is no
                           written text of the prompts, so a recording's own is 0. The recordings at half their level
                           say how much of it is Whisper's own doing
    spectral distance      dB, at three resolutions; see `evaluation.sounds`
    real-time factor       seconds of computing for a second of sound, one prompt at a time, threads as stated
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sfumato.domains.hearing import heard, words
from sfumato.domains.spectra import griffin_lim
from sfumato.evaluation.measure import interval, resample
from sfumato.evaluation.receipts import versions
from sfumato.evaluation.sounds import spectral_distances
from sfumato.evaluation.speech import dnsmos, word_errors
from sfumato.files import write_json
from sfumato.recipes.bench import Bench

RESAMPLES = 1000


def mean_of(top: np.ndarray, under: np.ndarray | None = None) -> list[float]:
    """[sum of top / sum of under, both ends of its interval] over prompts."""
    below = np.ones_like(top) if under is None else under
    drawn = [float(w.numpy() @ top / max(w.numpy() @ below, 1)) for w in resample(len(top), RESAMPLES, 0)]
    value = float(top.sum() / below.sum())
    return [round(x, 4) for x in (value, *interval(value, drawn))]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("bundle")
    asked.add_argument("--prompts", type=int, default=1000, help="at most so many held-out ones")
    asked.add_argument("--steps", type=int, help="of the solver; the model's own by default")
    asked.add_argument("--agreement", type=int, help="of the domain; the model's own by default")
    asked.add_argument(
        "--longest", type=float, default=20.0, help="seconds of a prompt that are made at most"
    )
    asked.add_argument("--sounds", type=Path, help="write all sounds into this folder")
    asked.add_argument("--out", type=Path, help="write the figures as JSON")
    given = asked.parse_args()

    bench = Bench(given.bundle)
    model, held = bench.model, bench.held
    domain = model.domain
    if given.agreement is not None:
        domain = replace(domain, agreement=given.agreement)
    rows = held.rows if held.rows is not None else range(len(held))
    names = sorted({held.groups[row] for row in rows})
    clips = dict(zip(*(lambda c: (c.names, c.sounds))(domain.clips(bench.recipe.data.source)), strict=True))
    names = names[:: max(len(names) // given.prompts, 1)][: given.prompts]
    kinds = ("recordings", "recordings, half as loud", "griffin-lim", "model")
    scores = {kind: {"dnsmos": [], "errors": [], "distance": []} for kind in kinds}
    spent, lengths, said = {"griffin-lim": 0.0, "model": 0.0}, [], []
    for number, name in enumerate(names):
        real = clips[name][: int(given.longest * domain.rate)]
        own = domain.of_length(len(real))
        padded = torch.from_numpy(np.pad(real, (0, own.length - len(real))))[None]
        mels = own.mel(padded)
        made = {"recordings": padded, "recordings, half as loud": padded / 2}
        began = time.perf_counter()
        made["griffin-lim"] = griffin_lim(mels, own.window, own.hop, own.rate)
        between = time.perf_counter()
        drawn = replace(model, domain=own).sample(
            indices=[number], condition={"spectrum": mels}, steps=given.steps
        )
        made["model"] = own.decode(drawn)
        spent["griffin-lim"] += between - began
        spent["model"] += time.perf_counter() - between
        lengths.append(len(real) / domain.rate)
        reference = words(heard(real, domain.rate))
        said.append(len(reference))
        for kind, sound in made.items():
            one = sound[0, : len(real)].numpy()
            scores[kind]["dnsmos"].append(dnsmos(one, domain.rate))
            scores[kind]["errors"].append(word_errors(reference, words(heard(one, domain.rate))))
            scores[kind]["distance"].append(float(spectral_distances(sound, padded)[0]))
            if given.sounds:
                from sfumato.domains.waves import to_wav

                given.sounds.mkdir(parents=True, exist_ok=True)
                plain = f"{name.rpartition('.')[0].replace('/', '-')}-{kind.partition(',')[0]}"
                if "half" not in kind:
                    (given.sounds / f"{plain}.wav").write_bytes(to_wav(one, domain.rate))
        print(f"{number + 1:4} of {len(names)}  {name}", flush=True)

    figures = {}
    base = np.array(scores["recordings"]["dnsmos"])
    for kind, found in scores.items():
        row = {
            "dnsmos": mean_of(np.array(found["dnsmos"])),
            "dnsmos beside the recording": mean_of(np.array(found["dnsmos"]) - base),
            "word error": mean_of(np.array(found["errors"], float), np.array(said, float)),
            "spectral distance": mean_of(np.array(found["distance"])),
        }
        if kind in spent:
            row["real-time factor"] = round(spent[kind] / sum(lengths), 4)
        figures[kind] = row
        print(f"\n{kind}")
        for key, value in row.items():
            text = (
                f"{value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})"
                if isinstance(value, list)
                else f"{value:.3f}"
            )
            print(f"  {key:30} {text}")
    about = {"prompts": len(names), "seconds": round(sum(lengths), 1), "words": sum(said)}
    about |= {"threads": torch.get_num_threads(), "steps": given.steps or model.sampling.steps}
    about["agreement"] = domain.agreement
    about |= {"model": model.fingerprint, "data": bench.data_hash, "versions": versions()}
    print(
        f"\n{about['prompts']} prompts, {about['seconds']} s, {about['words']} words; {about['threads']} threads"
    )
    if given.out:
        write_json(given.out, {"about": about, "figures": figures})


if __name__ == "__main__":
    main()
