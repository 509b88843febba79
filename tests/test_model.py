"""The network: each part against plain arithmetic, and what it may see."""

import math

import pytest
import torch
import torch.nn.functional as F

from conftest import make_model, tiny
from mdlm import model as network


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_scores_depend_on_distance_and_no_position_changes_a_length():
    cos, sin = network.rope_tables(32, 16)
    q, k = (network.rotate(x.expand(32, 16), cos, sin) for x in noise(2, 16))
    for d in range(-31, 32):
        along = (q @ k.T).diagonal(d)
        torch.testing.assert_close(along, along[:1].expand(len(along)), rtol=0, atol=1e-4)
    torch.testing.assert_close(q.norm(dim=-1), q[:1].norm(dim=-1).expand(32))
    assert cos[5, 3].item() == pytest.approx(math.cos(5 * 32 ** (-6 / 16)), abs=1e-6)
    assert sin[1, 0].item() == pytest.approx(math.sin(1), abs=1e-6)  # a radian per position


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_is_the_textbooks(causal, qk_norm):
    layer, x = network.Attention(32, 2, causal, qk_norm), 3 * noise(2, 9, 32)
    tables = network.rope_tables(9, 16)
    q, k, v = (p.unflatten(-1, (2, 16)).transpose(1, 2) for p in layer.qkv(x).split(32, dim=-1))
    if qk_norm:
        q, k = (u / u.pow(2).mean(dim=-1, keepdim=True).sqrt() for u in (q, k))
    q, k = network.rotate(q, *tables), network.rotate(k, *tables)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    expected = layer.out(y.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, *tables), expected, rtol=1e-4, atol=1e-5)
    weights = layer.weights(*layer.heads(x, *tables)[:2])
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 2, 9))


@pytest.mark.parametrize("causal", [False, True])
def test_every_place_sees_every_other_and_in_a_twin_only_those_before(causal):
    model, z = make_model(n_layers=2, causal=causal), torch.arange(16)[None]
    x = model.embedding(z)
    for block in model.blocks:
        x = x + block.attention(block.norm1(x), model.cos, model.sin)
        x = x + block.feed_forward(block.norm2(x))
    before = model.features(z)
    torch.testing.assert_close(before, model.norm(x))
    for j in range(16):
        changed = model.features(torch.where(torch.arange(16) == j, 50, z)) != before
        assert changed[0].any(dim=1).tolist() == [not causal or i >= j for i in range(16)]


def test_the_answers_obey_both_rules_of_subs():
    model, z = make_model(), torch.randint(300, (2, 16))
    z[:, ::2] = model.mask_id
    p, masked = model(z).exp(), z == model.mask_id
    assert (p[masked][:, -1] == 0).all()  # the mask is never an answer
    assert (p.gather(-1, z[..., None])[..., 0][~masked] == 1).all()
    expected = (model.features(z) @ model.embedding.weight[:-1].T).softmax(dim=-1)  # tied
    torch.testing.assert_close(p[masked][:, :-1], expected[masked])


def test_the_time_changes_nothing_at_first_and_something_later():
    z, t = torch.randint(300, (2, 16)), torch.tensor([0.2, 0.9])
    plain, timed = make_model(), make_model(time_conditioning=True)
    timed.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(timed.features(z, t), plain.features(z))
    for p in timed.blocks[0].modulation.parameters():
        torch.nn.init.normal_(p)
    assert not torch.allclose(timed.features(z, t), timed.features(z, t.flip(0)))
    angles = 1000 * t[:, None] * torch.tensor([1, 0.1, 0.01, 0.001])
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)
    torch.testing.assert_close(network.time_features(t, 8), waves, rtol=0, atol=1e-4)


def test_dropout_acts_on_both_layers_in_training_and_checkpointing_repeats_it():
    z, gradients, calls = torch.arange(16)[None], [], []
    for on in (False, True):
        model = make_model(dropout=0.5, activation_checkpointing=on)
        assert torch.equal(model.features(z), model.features(z))
        model.blocks[0].dropout.register_forward_hook(lambda *_: calls.append(1))
        torch.manual_seed(5)
        model.train().features(z).pow(2).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(*gradients) and len(calls) > 2 + 2
    assert not torch.equal(model.features(z), model.features(z))


def test_initial_weights_are_small_and_smaller_where_layers_add_up():
    for name, p in network.DiffusionTransformer(tiny(n_layers=8, d_model=128)).named_parameters():
        expected = 0.005 if name.endswith(("out.weight", "down.weight")) else 0.02
        assert p.dim() == 1 or p.std().item() == pytest.approx(expected, rel=0.05), name
