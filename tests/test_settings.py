"""Settings: presets, changes, and one line for each mistake."""

import pytest
import torch

from conftest import TINY
from files import UserError
from settings import PRESETS, Config, settings, show

NAN, INFINITY = float("nan"), float("inf")
WHOLE = "vocab_size context n_layers d_model n_heads steps batch_size accumulation eval_every"
WRONG = {  # names of settings: values that none of them can have
    f"{WHOLE} eval_windows save_every": (0, -1, 1.5, "8", 10**12, True, [3]),
    "muon_lr adamw_lr clip": (0.0, -0.1, NAN, INFINITY, "0.1"),
    "weight_decay dropout ema": (-0.1, NAN, INFINITY, "0.1"),
    "ema dropout": (1.0, 2.0), "warmup seed": (-1, 0.5), "causal qk_norm compile": (1, "yes"),
    "corpus loss optimizer": (7, b"kjv"), "loss optimizer": ("count", "adam"),
    "schedule": ("cosine",), "context": (65537,), "vocab_size": (256, 2_000_000),
    "d_model": (30,), "accumulation": (7,),
}  # fmt: skip


@pytest.mark.parametrize("names", WRONG)
def test_a_wrong_value_gets_one_line_that_names_it(names):
    for name in names.split():
        for value in WRONG[names]:
            with pytest.raises(UserError, match=rf"^[^\n]*{name}[^\n]*$"):
                settings("medium", **{**TINY, name: value})
                pytest.fail(f"{name} = {value!r} passes")


NAMES = {  # what was written: what is answered
    ("fast",): "no preset 'fast'",
    ("smal",): "did you mean 'small'?",
    ("steps=5",): "no preset 'steps=5'",
    ("medium", "step", 5): "no setting 'step': did you mean 'steps'?",
    ("medium", "optimizer", "moun"): "no optimizer 'moun': did you mean 'muon'?",
    ("medium", "loss", "xyz"): "no loss 'xyz': there is counts, time",
    ("medium", "d_model", 250): "try 248",  # four heads of even width
    ("medium", "schedule", "cosine"): 'is for loss="time"',
}


@pytest.mark.parametrize("given", NAMES)
def test_an_unknown_name_is_answered_with_the_nearest_and_a_vain_value_with_the_cure(given):
    preset, *change = given
    with pytest.raises(UserError) as caught:
        settings(preset, **dict([change] if change else []))
    assert NAMES[given] in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_change_replaces_the_presets_value_and_none_leaves_it(preset):
    config = settings(preset, steps=7, context=None, clip=2)
    assert config == Config(**{**PRESETS[preset], "steps": 7, "clip": 2.0})
    assert type(config.clip) is float and settings(preset) == Config(**PRESETS[preset])


@pytest.mark.parametrize("device", ["cuda", "cpu", "mps"])
def test_the_usual_preset_suits_the_machine(device, monkeypatch):
    monkeypatch.setattr("hardware.pick_device", lambda: torch.device(device))
    assert settings(steps=9) == settings("cuda" if device == "cuda" else "small", steps=9)


def test_what_differs_between_presets_is_shown_beside_this_run(capsys):
    show(settings("medium", steps=777))
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert rows["steps"].split()[1] == "777" and len(rows["steps"].split()) == 2 + 4
    assert "muon_lr" not in rows and "n_layers" in rows  # the first is the same everywhere
