"""The model card: what a person should know before using a model, written by the run that made it.

It states only what the run knows: data and their licence, what was trained and how long, what was measured and by which
receipt. What it does not know it leaves as a question for whoever publishes the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..processes import Joint

if TYPE_CHECKING:
    from ..codec import LatentCodec
    from ..domains.images import Images
    from ..evaluation.measure import Measure
    from ..model import Model
    from ..personal import Adapter

MEASURES = "<!-- measures -->"


def model_card(
    model: Model, recipe: Mapping[str, Any], data: Mapping[str, Any], training: Mapping[str, Any]
) -> str:
    """The card in Markdown, with a place for the figures that `add_measures` fills."""
    network = model.denoiser.network
    shape: Any = model.domain.shape
    process: Any = model.denoiser.process
    leaves = list(process.processes) if isinstance(process, Joint) else []
    shape = f"{len(leaves)} leaves" if leaves else "×".join(map(str, shape))
    first: Any = process[leaves[0]] if leaves else process
    schedule = first.schedule.to_json()
    row = "of each leaf its own row" if leaves else f"`{model.denoiser.parameterisation}`"
    plan = model.sampling.to_json()
    held_out = training.get("held_out_loss")
    asked = model.conditions.examples
    example = 'condition={"label": 0}, ' if model.classes else ""
    if asked and not model.classes:
        example = f'condition={{"text": {json.dumps(asked[0], ensure_ascii=False)}}}, '
    text = model.info.get("text")
    return f"""# {recipe["name"]}

{recipe["about"] or "A diffusion model trained with sfumato."}

![samples](figures/samples.png)

Samples 0 and on of seed 0, {plan["steps"]} steps of `{plan["solver"]["kind"]}`, guidance {model.sampling.guidance:g}.

## Use

```python
import sfumato

model = sfumato.load("model")  # this folder
samples = model.sample(16, {example}seed=0)
model.domain.picture(samples).save("samples.png")
```

## Measured

{MEASURES}
Not yet: `sfumato evaluate` on this folder measures it and writes the figures here.
{MEASURES}

## Model

| | |
|---|---|
| network | {network.kind}, {sum(p.numel() for p in network.parameters()):,} parameters |
| process | {schedule["kind"]} schedule, the network predicts {row} |
| state | {shape}, {model.domain.name} |
{_codec(model)}| labels | {len(model.classes) or "none"} |
| text | {f"{text['name']}, {text['limit']} tokens, SHA-256 `{text['hash'][:16]}`" if text else "none"} |
| trained on | {training["images"]:,} images (with repetition), {training["seconds"]:,.0f} s |
| weights | average over the run: {training["average"]} |
| held-out loss | {"not measured" if held_out is None else f"{held_out:.5g}"} |

{_data(data)}
## Limits

The model imitates its training data and whatever is one-sided in them. It was measured on the figures above and on
nothing else. Whoever publishes it should add what it is for and what it must not be used for.
"""


def codec_card(
    codec: LatentCodec, domain: Images, times: float, recipe: Mapping[str, Any], about: Mapping[str, Any]
) -> str:
    """The card of an autoencoder, with a place for the figures; times: how many fewer numbers its latents have."""
    network, training = codec.network, about["training"]
    latent = "×".join(map(str, codec.shape(domain.shape)))
    held_out = training.get("held_out_loss")
    losses = recipe["objective"]["losses"]
    return f"""# {recipe["name"]}

{recipe["about"] or "An autoencoder trained with sfumato."}

![reconstructions](figures/samples.png)

Held-out pictures, and what is left of them.

## Use

```python
from sfumato.bundle import load_codec

codec = load_codec("model")  # this folder
z = codec.encode(x)  # x: (batch, {domain.shape[0]}, height, width) in [-1, 1]
x = codec.decode(z)  # codec.decode(z, tile=32) for large pictures
```

A diffusion model is trained on its latents by `sfumato train RECIPE codec.bundle=model`.

## Measured

{MEASURES}
Not yet: `sfumato evaluate` on this folder measures it and writes the figures here.
{MEASURES}

## Codec

| | |
|---|---|
| network | {network.kind}, {sum(p.numel() for p in network.parameters()):,} parameters |
| pictures | {"×".join(map(str, domain.shape))} (channels, height, width) |
| latents | {latent}, {times:.3g} times fewer numbers, {network.bottleneck} bottleneck |
| losses | absolute error, KL × {losses["kl"]:g}, features ({losses["features"]}) × {losses["perceptual"]:g}, \
critic's share {losses["adversarial"]:g} |
| trained on | {training["images"]:,} images (with repetition), {training["seconds"]:,.0f} s |
| weights | average over the run: {training["average"]} |
| held-out loss | {"not measured" if held_out is None else f"{held_out:.5g}"} |

{_data(about["data"])}
## Limits

It gives back what resembles its training data and invents what does not fit into its latents. Features that it was
trained by flatter it when it is judged by the same network.
"""


def _codec(model: Model) -> str:
    """The row of a model card about its codec, "" without one."""
    info = getattr(model.codec, "info", None)
    if info is None:
        return ""
    name = info.get("name") or info.get("recipe", {}).get("name", "")
    return f"| latents | {'×'.join(map(str, model.latent_shape))}, decoded by the codec `{name}` in this bundle |\n"


def _data(data: Mapping[str, Any]) -> str:
    """The data card."""
    card = data["train"]
    classes = ", ".join(f"{name} ({count:,})" for name, count in card["classes"].items()) or "none"
    return f"""## Data card

| | |
|---|---|
| source | {card["name"]} |
| pictures | {card["count"]:,} to train on, {data["held_out"]["count"]:,} held out |
| classes | {classes} |
| captions | {card.get("captions") or "none"} |
| origin | {card["origin"]} |
| licence | {card["licence"]} |
| citation | {card["citation"]} |
| SHA-256 | `{card["sha256"]}` |
"""


def adapter_card(adapter: Adapter, model: Model, about: Mapping[str, Any]) -> str:
    """The card of an adapter in Markdown; about: its recipe, data and training. model: with the adapter."""
    recipe, card, training = about["recipe"], about["data"]["train"], about["training"]
    new = ", ".join(adapter.classes) or "none"
    label = next(iter(adapter.classes), model.classes[0] if model.classes else "")
    asked = f"condition={{'label': {label!r}}}, " if label else ""
    return f"""# {recipe["name"]}

{recipe["about"]}: an adapter, to be used with the model that it was made for.

![samples](figures/samples.png)

## Use

```python
import sfumato

model = sfumato.load("model").with_adapters([sfumato.load_adapter("adapter")])
samples = model.sample(16, {asked}seed=0)
```

## Adapter

| | |
|---|---|
| made for weights with the SHA-256 | `{adapter.base}` |
| rank, alpha | {adapter.rank}, {adapter.alpha:g} |
| layers | {len(adapter.updates)} |
| numbers | {adapter.parameters:,} |
| new classes | {new} |
| trained on | {training["images"]:,} images (with repetition), {training["seconds"]:,.0f} s |
{forgotten(training["forgetting"])}
## Data card

| | |
|---|---|
| source | {card["name"]} |
| pictures | {card["count"]:,} to train on, {about["data"]["held_out"]["count"]:,} held out |
| origin | {card["origin"]} |
| licence | {card["licence"]} |
| SHA-256 | `{card["sha256"]}` |

## Limits

It was taught by {card["count"]} pictures and will draw what is like them, copies among it. What is known of those
pictures' subjects, and whether they agreed, is for whoever publishes this to say.
"""


def forgotten(lost: Mapping[str, float]) -> str:
    """What fine-tuning forgot, as a section of a card; see `finetune.forgetting`."""
    return f"""
## Forgotten

The loss on {lost["samples"]} fresh samples of the model before: {lost["before"]:.4g} then, {lost["after"]:.4g} now;
in pairs {lost["difference"]:+.3g} (95 %: {lost["low"]:+.3g} … {lost["high"]:+.3g}). 0 would be nothing.
"""


def add_measures(text: str, measures: Iterable[Measure], heading: str) -> str:
    """The card with a table of measures in their place; text outside the two marks is kept."""
    before, _, rest = text.partition(MEASURES)
    _, mark, after = rest.partition(MEASURES)
    if not mark:
        return text
    rows = [heading, "", "| figure | value | 95 % interval | held-out real data |", "|---|---|---|---|"]
    for m in measures:
        between = "–" if m.low is None else f"{m.low:.4g} … {m.high:.4g}"
        rows.append(
            f"| {m.name} | {m.value:.4g} | {between} | {'–' if m.floor is None else f'{m.floor:.4g}'} |"
        )
    table = "\n".join(rows)
    return f"{before}{MEASURES}\n{table}\n{MEASURES}{after}"
