"""Laws that both networks obey, whatever their weights."""

import json
import re

import pytest
import torch
from torch.nn import functional as F

from sfumato.networks import Conditioning, FourierFeatures, build, fold, unfold
from sfumato.networks.embeddings import attend, rms_norm, rotated
from sfumato.networks.transformer import Transformer

SMALL = {
    "unet": {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "head": 8, "embedding": 16},
    "dit": {"width": 16, "depth": 2, "head": 8, "embedding": 16},
}
SLOTS = {"classes": 3, "text_dim": 5, "image_channels": 1}
kinds = pytest.mark.parametrize("kind", SMALL)


def network(kind, **changes):
    """A small network whose weights are all away from zero, as after some training."""
    torch.manual_seed(0)
    net = build(kind, **{"in_channels": 2, "size": 8, **SMALL[kind], **changes})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()


def inputs(batch=4, channels=2, size=(8, 8)):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, channels, *size, generator=generator)
    return x, torch.linspace(-2.5, 2.5, batch)


def full_condition(batch=4, size=(8, 8)):
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(batch, 6, generator=generator) < 0.6
    mask[1] = False  # one sample without a text
    return {
        "label": torch.arange(batch) % 3,
        "text": torch.randn(batch, 6, 5, generator=generator),
        "text_mask": mask,
        "image": torch.randn(batch, 1, *size, generator=generator),
    }


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_unfold_undoes_fold_and_fold_only_permutes(patch):
    x = torch.randn(2, 3, 6, 12)
    folded = fold(x, patch)
    assert folded.shape == (2, 3 * patch**2, 6 // patch, 12 // patch)
    assert torch.equal(unfold(folded, patch), x)
    assert torch.equal(folded.flatten().sort().values, x.flatten().sort().values)


def test_fourier_features_have_unit_variance_and_distinguish_levels():
    features = FourierFeatures(64)(torch.linspace(-2.5, 2.5, 501))
    assert features.square().mean(1).sub(1).abs().max() < 1e-5
    # Levels a fiftieth of the range apart are further from each other than rounding could explain.
    assert (features[10:] - features[:-10]).norm(dim=1).min() > 0.5


def test_rms_norm_makes_unit_root_mean_square():
    y = rms_norm(7 * torch.randn(2, 64, 3, 3), 1)
    torch.testing.assert_close(y.square().mean(1), torch.ones(2, 3, 3), rtol=1e-4, atol=1e-4)


def test_attention_is_that_of_torch_on_normalised_vectors():
    q, k, v = torch.randn(3, 2, 2, 7, 8).unbind(0)
    mask = torch.tensor([[True] * 7, [True, False] * 3 + [True]])
    expected = F.scaled_dot_product_attention(rms_norm(q), rms_norm(k), v, attn_mask=mask[:, None, None])
    torch.testing.assert_close(attend(q, k, v, mask), expected)


def test_rotary_attention_goes_by_distance():
    """What a query says of a key, both the same everywhere, is the same along every diagonal, and not along others."""
    torch.manual_seed(0)
    q, k = (torch.randn(2, 3, 1, 16, dtype=torch.float64).expand(2, 3, 12, 16) for _ in range(2))
    logits = rotated(q) @ rotated(k).mT
    assert torch.allclose(
        logits[..., 1:, 1:], logits[..., :-1, :-1], atol=1e-5
    )  # angles are of single precision
    assert (logits[..., 0, 1:] - logits[..., 0, :1]).abs().max() > 0.1
    assert torch.allclose(rotated(q).square().sum(3), q.square().sum(3), atol=1e-5)
    network = Transformer(length=6, symbols=5, width=32, depth=1, head=16, embedding=16, rotary=True)
    with (
        torch.no_grad()
    ):  # without places of their own, tokens of one symbol differ by what is near them alone
        for weight in network.parameters():
            weight.copy_(torch.randn_like(weight))
        network.position.zero_()
    (told,) = network(torch.tensor([[0, 0, 1, 0, 0, 0]]), torch.zeros(1))
    assert not torch.allclose(told[1], told[5], atol=1e-3)  # one before the 1, three after it
    with pytest.raises(ValueError, match="of an order"):
        Transformer(length=6, symbols=5, ordered=False, rotary=True)


@kinds
def test_a_new_network_answers_zero(kind):
    net = build(kind, in_channels=2, size=8, **SMALL[kind])
    assert not net(*inputs()).any()


@kinds
def test_the_answer_to_a_sample_does_not_depend_on_the_batch(kind):
    net = network(kind, **SLOTS).double()
    (x, level), condition = inputs(), full_condition()
    x, level = x.double(), level.double()
    condition = {k: v.double() if v.is_floating_point() else v for k, v in condition.items()}
    whole = net(x, level, condition)
    order = torch.tensor([2, 0, 3])
    part = net(x[order], level[order], {k: v[order] for k, v in condition.items()})
    torch.testing.assert_close(part, whole[order], rtol=1e-10, atol=1e-10)
    (gradient,) = torch.autograd.grad(net(x.requires_grad_(), level, condition)[0].sum(), x)
    assert gradient[0].any()
    assert not gradient[1:].any()


@kinds
@pytest.mark.parametrize("slot", ["label", "text", "text_mask", "image"])
def test_every_slot_matters(kind, slot):
    net, (x, level), condition = network(kind, **SLOTS), inputs(), full_condition()
    other = {**condition, slot: condition[slot].roll(1, 0)}
    assert (net(x, level, other) - net(x, level, condition)).abs().max() > 1e-4


@kinds
def test_the_noise_level_matters(kind):
    net, (x, level) = network(kind), inputs()
    assert (net(x, level + 0.05) - net(x, level)).abs().max() > 1e-4


@kinds
def test_a_missing_slot_is_its_null_written_out(kind):
    net, (x, level) = network(kind, **SLOTS), inputs()
    nulls = {
        "label": torch.full((4,), 3),
        "text": torch.full((4, 6, 5), torch.nan),  # what is hidden may hold anything
        "text_mask": torch.zeros(4, 6, dtype=torch.bool),
        "image": torch.zeros(4, 1, 8, 8),
    }
    torch.testing.assert_close(net(x, level, nulls), net(x, level), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net(x, level, {}), net(x, level, None), rtol=0, atol=0)
    condition = full_condition()
    for slot in ("label", "image"):
        rest = {k: v for k, v in condition.items() if k != slot}
        written = net(x, level, {**rest, slot: nulls[slot]})
        torch.testing.assert_close(net(x, level, rest), written, rtol=1e-4, atol=1e-5)


@kinds
def test_hidden_words_do_not_matter_and_an_absent_mask_hides_none(kind):
    net, (x, level), condition = network(kind, **SLOTS), inputs(), full_condition()
    scribbled = condition["text"].masked_fill(~condition["text_mask"][..., None], 1e3)
    same = net(x, level, {**condition, "text": scribbled})
    torch.testing.assert_close(same, net(x, level, condition), rtol=1e-4, atol=1e-5)
    unmasked = {k: v for k, v in condition.items() if k != "text_mask"}
    seen = {**condition, "text_mask": torch.ones(4, 6, dtype=torch.bool)}
    torch.testing.assert_close(net(x, level, unmasked), net(x, level, seen))


@kinds
def test_checkpointing_changes_no_gradient(kind):
    (x, level), condition = inputs(), full_condition()
    gradients = []
    for checkpointing in (False, True):
        net = network(kind, checkpointing=checkpointing, dropout=0.2, **SLOTS).train()
        torch.manual_seed(3)  # dropout must be recomputed with the same draws
        net(x, level, condition).square().mean().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(g is not None and g.any() for g in gradients[0])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@kinds
@pytest.mark.parametrize("size", [(9, 7), (28, 28), (5, 16)])
def test_any_size_from_the_stride_up_works(kind, size):
    net = network(kind, size=size, out_channels=4)
    x, level = inputs(size=size)
    assert net(x, level).shape == (4, 4, *size)
    assert net(x.to(memory_format=torch.channels_last), level).shape == (4, 4, *size)


@kinds
@pytest.mark.parametrize("slots", [{}, SLOTS], ids=["bare", "all slots"])
def test_compiles_without_graph_breaks(kind, slots):
    net, (x, level) = network(kind, **slots), inputs()
    condition = full_condition() if slots else None
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, level, condition), net(x, level, condition), rtol=1e-4, atol=1e-5)


@kinds
def test_forward_mode_derivative_is_the_finite_difference(kind):
    net = network(kind, **SLOTS).double()
    condition = {k: v.double() if v.is_floating_point() else v for k, v in full_condition().items()}
    x, level = (v.double() for v in inputs())
    dx, dlevel = torch.randn_like(x), torch.randn_like(level)
    _, tangent = torch.func.jvp(lambda x, c: net(x, c, condition), (x, level), (dx, dlevel))
    h = 1e-6
    ahead, behind = (net(x + s * h * dx, level + s * h * dlevel, condition) for s in (1, -1))
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-6)


@kinds
def test_config_is_json_and_rebuilds_the_network(kind):
    net, (x, level) = network(kind, size=(9, 7), **SLOTS), inputs(size=(9, 7))
    again = build(net.kind, **json.loads(json.dumps(net.config)))
    again.load_state_dict(net.state_dict())
    assert again.config == net.config
    assert torch.equal(again.eval()(x, level), net(x, level))


def test_a_deeper_wider_network_is_a_change_of_configuration():
    net = build(
        "unet", in_channels=4, size=32, width=16, multipliers=(1, 2, 2), blocks=(1, 1, 2), attention=(1, 2)
    )
    assert net(torch.randn(1, 4, 32, 32), torch.zeros(1)).shape == (1, 4, 32, 32)


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        ("unett", {}, ["'unett'", "unet, dit", "did you mean 'unet'"]),
        ("unet", {"in_channels": 1, "size": 8, "widht": 3}, ["'widht'", "did you mean 'width'"]),
        ("dit", {"size": 8}, ["needs in_channels", "given: size"]),
        ("unet", {"in_channels": 1, "size": 3}, ["smaller than", "= 4"]),
        ("unet", {"in_channels": 1, "size": 8, "blocks": (1,)}, ["one a level", "(1,)"]),
        ("unet", {"in_channels": 1, "size": 8, "attention": (2,)}, ["level 2", "0 to 1"]),
        ("unet", {"in_channels": 1, "size": 8, "dropout": 1.5}, ["dropout", "1.5"]),
        ("unet", {"in_channels": 1, "size": 8, "attention": (1,), "head": 48}, ["48 does not divide 128"]),
        ("unet", {"in_channels": 0, "size": 8}, ["in_channels", "positive", "0"]),
        ("dit", {"in_channels": 1, "size": (8, 8, 8)}, ["(height, width)", "(8, 8, 8)"]),
        ("dit", {"in_channels": 1, "size": 8, "width": 18, "head": 9}, ["4 divides", "18"]),
        ("dit", {"in_channels": 1, "size": 8, "classes": -1}, ["classes", "-1"]),
    ],
)
def test_errors_say_what_was_given_and_what_is_allowed(kind, config, words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        build(kind, **config)
    for word in words:
        assert word in str(error.value)


@kinds
def test_wrong_inputs_are_refused(kind):
    net, (x, level) = network(kind), inputs()
    with pytest.raises(ValueError, match="built for x of"):
        net(x[:, :, :4], level)
    with pytest.raises(ValueError, match="no condition slot 'label'; it has none"):
        net(x, level, {"label": torch.zeros(4, dtype=torch.long)})


def test_wrong_conditions_are_refused():
    slots, level = Conditioning(8, **SLOTS), torch.zeros(4)
    for condition, message in [
        ({"lable": torch.zeros(4)}, "no condition slot 'lable'"),
        ({"label": torch.zeros(3, dtype=torch.long)}, "must be \\(4,\\)"),
        ({"text": torch.zeros(4, 2, 6)}, "must be \\(4, tokens, 5\\)"),
        (
            {"text": torch.zeros(4, 2, 5), "text_mask": torch.ones(4, 3, dtype=torch.bool)},
            "must be \\(4, 2\\)",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            slots(level, condition)
    with pytest.raises(ValueError, match="'image' must be"):
        slots.join_image(torch.zeros(4, 2, 8, 8), {"image": torch.zeros(4, 1, 4, 4)})
