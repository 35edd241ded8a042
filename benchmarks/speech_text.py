"""Text to speech on prompts that were held out: are the words understood?

    python benchmarks/speech_text.py runs/speech-text/model runs/speech/model --out speech-text.json

The texts are those of the held-out prompts, as Whisper tiny.en hears them in the recordings; what is made of each is
heard again, and the share of words that are wrong is printed with its 95 % interval over prompts:

    their mels        the recordings' own mel spectra through the vocoder: what is lost there is not the text model's
    griffin-lim       from the text, without a vocoder
    vocoder           from the text, and the vocoder
    another text      the vocoder's sounds beside texts of other prompts: what a model that says anything would have

The recordings have 0 by definition. The vocoder may have been trained on prompts that are held out here; that concerns
how a spectrum sounds, not what is said.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sfumato import bundle
from sfumato.domains.hearing import all_heard, heard, words
from sfumato.domains.waves import to_wav
from sfumato.evaluation.measure import interval, resample
from sfumato.evaluation.receipts import versions
from sfumato.evaluation.speech import dnsmos, word_errors
from sfumato.files import write_json
from sfumato.recipes.bench import Bench


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("bundle", help="of the model that makes spectra of texts")
    asked.add_argument("vocoder", help="of the model that makes sounds of spectra")
    asked.add_argument("--prompts", type=int, default=1000, help="at most so many held-out ones")
    asked.add_argument(
        "--longest", type=float, default=12.0, help="seconds of a prompt at most; longer ones are not taken"
    )
    asked.add_argument("--sounds", type=Path, help="write the sounds into this folder")
    asked.add_argument("--out", type=Path, help="write the figures as JSON")
    given = asked.parse_args()

    bench, vocoder = Bench(given.bundle), bundle.load(given.vocoder)
    model, held, domain = bench.model, bench.held, bench.model.domain
    clips = domain.clips(bench.recipe.data.source)
    texts = dict(zip(clips.names, all_heard(clips.sounds, domain.rate), strict=True))
    sounds = dict(zip(clips.names, clips.sounds, strict=True))
    rows = held.rows if held.rows is not None else range(len(held))
    names = sorted({held.groups[row] for row in rows})
    names = [n for n in names if words(texts[n]) and len(sounds[n]) < given.longest * domain.rate]
    names = names[:: max(len(names) // given.prompts, 1)][: given.prompts]

    def voiced(mels: torch.Tensor, number: int) -> np.ndarray:
        own = replace(vocoder.domain, length=mels.shape[2] * domain.hop)
        drawn = replace(vocoder, domain=own).sample(indices=[number], condition={"spectrum": mels})
        return own.decode(drawn)[0].numpy()

    kinds = ("their mels", "griffin-lim", "vocoder", "another text")
    wrong, said, mos = {kind: [] for kind in kinds}, [], {kind: [] for kind in kinds[:3]}
    heard_before: list[str] = []
    for number, name in enumerate(names):
        reference = words(texts[name])
        own = domain.of_length(domain.samples_of(texts[name]))
        state = replace(model, domain=own).sample(indices=[number], condition={"text": texts[name]})
        real = sounds[name]
        room = domain.of_length(len(real))
        mels = room.mel(np.pad(real, (0, room.length - len(real)))[None])
        made = {"their mels": voiced(mels, number), "griffin-lim": own.decode(state)[0].numpy()}
        made["vocoder"] = voiced(state[:, 0], number)
        said.append(len(reference))
        for kind, sound in made.items():
            found = words(heard(sound, domain.rate))
            wrong[kind].append(word_errors(reference, found))
            mos[kind].append(dnsmos(sound, domain.rate))
            if given.sounds:
                given.sounds.mkdir(parents=True, exist_ok=True)
                plain = f"{name.rpartition('.')[0].replace('/', '-')}-{kind.replace(' ', '-')}.wav"
                (given.sounds / plain).write_bytes(to_wav(sound, domain.rate))
        wrong["another text"].append(word_errors(reference, heard_before or ["none"]))
        heard_before = found
        print(f"{number + 1:4} of {len(names)}  {name}: {texts[name]!r} -> {' '.join(found)!r}", flush=True)

    figures, count = {}, np.array(said, float)
    for kind, each in wrong.items():
        top = np.array(each, float)
        drawn = [float(w.numpy() @ top / max(w.numpy() @ count, 1)) for w in resample(len(top), 1000, 0)]
        value = float(top.sum() / count.sum())
        figures[kind] = {"word error": [round(x, 4) for x in (value, *interval(value, drawn))]}
        figures[kind] |= {"dnsmos": round(float(np.mean(mos[kind])), 3)} if kind in mos else {}
        print(f"{kind:14} {figures[kind]}")
    about = {
        "prompts": len(names),
        "words": sum(said),
        "model": model.fingerprint,
        "vocoder": vocoder.fingerprint,
    }
    if given.out:
        write_json(given.out, {"about": about | {"versions": versions()}, "figures": figures})


if __name__ == "__main__":
    main()
