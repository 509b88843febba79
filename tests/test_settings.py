"""Settings: presets, changes, and one line for each mistake."""

import pytest
import torch

import settings as module
from conftest import TINY
from files import UserError
from settings import PRESETS, Config, settings, show

WHOLE = ("vocab_size", "context", "n_layers", "d_model", "n_heads", "steps", "batch_size",
         "accumulation", "eval_every", "eval_windows", "save_every")  # fmt: skip
WRONG = [
    *((name, v) for name in WHOLE for v in (0, -1, 1.5, "8", 10**12, True, [3])),
    *((name, v) for name in ("muon_lr", "adamw_lr", "clip")
      for v in (0.0, -0.1, float("nan"), float("inf"), "0.1")),
    *((name, v) for name in ("weight_decay", "dropout", "ema")
      for v in (-0.1, float("nan"), float("inf"), "0.1")),
    ("ema", 1.0), ("dropout", 1.0), ("warmup", -1), ("seed", -1), ("causal", 1), ("corpus", 7),
    ("qk_norm", "yes"), ("compile", 1), ("loss", 3), ("loss", "count"), ("optimizer", "adam"),
    ("schedule", "cosine"), ("context", 65537), ("vocab_size", 256), ("vocab_size", 2_000_000),
    ("d_model", 30), ("accumulation", 7),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_gets_one_line_that_names_it(name, value):
    with pytest.raises(UserError) as caught:
        settings("medium", **{**TINY, name: value})
    assert name in str(caught.value) and "\n" not in str(caught.value)


NAMES = {  # what was written: what is answered
    ("fast",): "no preset 'fast'",
    ("smal",): "did you mean 'small'?",
    ("steps=5",): "no preset 'steps=5'",
    ("medium", "step", 5): "no setting 'step': did you mean 'steps'?",
    ("medium", "optimizer", "moun"): "no optimizer 'moun': did you mean 'muon'?",
    ("medium", "loss", "xyz"): "no loss 'xyz': there is counts, time",
    ("medium", "d_model", 250): "try 248",  # four heads of even width
}


@pytest.mark.parametrize("given", NAMES)
def test_an_unknown_name_is_answered_with_the_nearest(given):
    preset, *change = given
    with pytest.raises(UserError) as caught:
        settings(preset, **dict([change] if change else []))
    assert NAMES[given] in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_change_replaces_the_presets_value_and_none_leaves_it(preset):
    config = settings(preset, steps=7, context=None, clip=2)
    assert config == Config(**{**PRESETS[preset], "steps": 7, "clip": 2.0})
    assert type(config.clip) is float and settings(preset) == Config(**PRESETS[preset])


def test_settings_that_would_change_nothing_are_refused():
    with pytest.raises(UserError, match='set loss="time" as well'):
        settings("medium", schedule="cosine")
    settings("medium", schedule="cosine", loss="time")
    with pytest.raises(UserError, match="knows no time"):
        settings("medium", causal=True, time_conditioning=True)


@pytest.mark.parametrize(
    ("device", "preset"), [("cuda", "cuda"), ("cpu", "small"), ("mps", "small")]
)
def test_the_usual_preset_suits_the_machine(device, preset, monkeypatch):
    monkeypatch.setattr("hardware.pick_device", lambda: torch.device(device))
    assert module.usual_preset() == preset and settings(steps=9) == settings(preset, steps=9)


def test_what_differs_between_presets_is_shown_beside_this_run(capsys):
    show(settings("medium", steps=777))
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    rows = {line[0]: line[1:] for line in lines}
    assert rows["steps"][0] == "777" and len(rows["steps"]) == 1 + 4
    assert "muon_lr" not in rows and "n_layers" in rows  # the same everywhere
