"""Model, loss and sampler, against exact enumeration where that is possible."""

import itertools
import math
from pathlib import Path

import pytest
import torch

from bpe_tokenizer import UserError
from mdlm.config import Config
from mdlm.diffusion import diffusion_loss, nelbo
from mdlm.model import DiffusionTransformer, rope_tables, rotate
from mdlm.sampling import sample, sample_plain
from mdlm.training import load_checkpoint
from run import export_notebooks

TINY = dict(n_layers=2, d_model=32, n_heads=2, context=16, vocab_size=300, compile=False)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return DiffusionTransformer(Config(**TINY)).eval()


def test_rope_depends_on_distance_only():
    cos, sin = rope_tables(32, 16)
    q, k = torch.randn(2, 16)
    score = rotate(q.expand(32, 16), cos, sin) @ rotate(k.expand(32, 16), cos, sin).T
    for d in range(-31, 32):
        torch.testing.assert_close(score.diagonal(d), score.diagonal(d)[:1].expand(32 - abs(d)))


def test_every_position_sees_every_other(model):
    z = torch.randint(299, (1, 16))
    before = model.features(z)[0]
    for j in range(16):
        other = z.clone()
        other[0, j] = (other[0, j] + 1) % 299
        assert ((model.features(other)[0] - before).abs().amax(dim=1) > 0).all()


def test_subs(model):
    z = torch.randint(300, (2, 16))
    z[:, ::2] = model.mask_id
    p = model(z).exp()
    masked = z == model.mask_id
    assert (p[..., model.mask_id][masked] == 0).all()
    torch.testing.assert_close(p.sum(-1), torch.ones(2, 16))
    assert (p.gather(-1, z[..., None])[..., 0][~masked] == 1).all()


class Enumerable:
    """The model's interface over an arbitrary table: 3 tokens, 3 positions, mask number 3."""

    mask_id = 3

    def __init__(self):
        noise = torch.Generator().manual_seed(3)
        self.table = torch.randn(4, 4, 4, 3, 3, generator=noise).log_softmax(-1)
        self.config = Config(context=3)

    def parameters(self):
        yield self.table

    def features(self, z, t=None):
        return self.table[z[:, 0], z[:, 1], z[:, 2]]

    def head(self, h):
        return h


def exact_nelbo(model, x):
    """Average over the numbers of masks and all masks with so many, one by one."""
    total = 0.0
    for k in (1, 2, 3):
        sets = list(itertools.combinations(range(3), k))
        for masked in sets:
            z = x.clone()
            z[0, list(masked)] = 3
            log_p = model.features(z)[0]
            total -= sum(log_p[i, x[0, i]].item() for i in masked) / k / len(sets)
    return total


@pytest.mark.parametrize("schedule", ["linear", "cosine", "polynomial"])
def test_loss_is_unbiased_for_the_bound(schedule):
    model, x, n = Enumerable(), torch.tensor([[0, 2, 1]]), 200_000
    noise = torch.Generator().manual_seed(0)
    t = torch.rand(n, generator=noise, dtype=torch.float64).clamp_min(1e-9)
    estimates = diffusion_loss(model, x.expand(n, -1), t, schedule, noise)
    error = estimates.std() / math.sqrt(n)
    assert abs(estimates.mean() - exact_nelbo(model, x)) < 4 * error


def test_reported_bound_is_unbiased():
    model, x, n = Enumerable(), torch.tensor([[0, 2, 1]]), 90_000
    k = torch.arange(n) % 3 + 1
    estimates = nelbo(model, x.expand(n, -1), k, torch.Generator().manual_seed(0))
    assert abs(estimates.mean() - exact_nelbo(model, x)) < 4 * estimates.std() / math.sqrt(n)


def exact_distribution(model, steps):
    """Probability of each text under ancestral sampling, by following every branch."""
    states = {(3, 3, 3): 1.0}
    for i in range(1, steps + 1):
        chance, new = 1 / (steps - i + 1), {}
        for z, weight in states.items():
            p = model.table[z].exp().tolist()
            choices = [
                [(3, 1 - chance)] + [(v, chance * p[j][v]) for v in range(3)]
                if z[j] == 3
                else [(z[j], 1.0)]
                for j in range(3)
            ]
            for combination in itertools.product(*choices):
                text = tuple(v for v, _ in combination)
                new[text] = new.get(text, 0.0) + weight * math.prod(q for _, q in combination)
        states = {z: w for z, w in new.items() if w > 0}
    return states


@pytest.mark.parametrize("sampler", [sample_plain, sample])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_sampler_draws_from_the_exact_distribution(sampler, steps):
    model, n = Enumerable(), 20_000
    z = torch.full((n, 3), 3)
    tokens = sampler(model, z, steps, generator=torch.Generator().manual_seed(steps)).tokens
    counts = (tokens * torch.tensor([9, 3, 1])).sum(1).bincount(minlength=27)
    expected = torch.zeros(27)
    for (a, b, c), weight in exact_distribution(model, steps).items():
        expected[9 * a + 3 * b + c] = n * weight
    chi2 = ((counts - expected) ** 2 / expected).sum().item()
    assert chi2 < 26 + 4 * math.sqrt(
        2 * 26
    )  # mean and standard deviation of chi-square, 26 degrees


@pytest.mark.parametrize("sampler", [sample_plain, sample])
def test_sampler_keeps_what_is_given_and_leaves_no_mask(model, sampler):
    z = torch.randint(299, (3, 16))
    z[:, 3:11] = model.mask_id
    result = sampler(model, z, 7, generator=torch.Generator().manual_seed(0))
    assert (result.tokens != model.mask_id).all()
    given = z != model.mask_id
    assert (result.tokens[given] == z[given]).all()
    assert (result.state(0) == z).all()


def test_damaged_checkpoint_and_bad_settings(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="not a checkpoint"):
        load_checkpoint(path)
    with pytest.raises(UserError, match="d_model"):
        Config(d_model=30, n_heads=4)


def test_modules_are_what_the_notebooks_export(tmp_path, monkeypatch):
    root = Path(__file__).parent.parent
    monkeypatch.chdir(root)
    export_notebooks(tmp_path / "mdlm")
    names = {path.name for path in (root / "mdlm").glob("*.py")}
    assert names == {path.name for path in (tmp_path / "mdlm").glob("*.py")}
    for path in (root / "mdlm").glob("*.py"):
        code, exported = (
            [
                line
                for line in p.read_text(encoding="utf-8").splitlines()
                if not line.startswith(("# %% ", "# AUTOGENERATED"))  # they name a relative path
            ]
            for p in (path, tmp_path / "mdlm" / path.name)
        )
        assert code == exported
