"""Each device gets what suits it, and a compiler that fails costs one line."""

import sys

import pytest
import torch

import hardware
from conftest import make_model
from hardware import DeviceChoices, device_choices

BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32
DEVICES = [  # device, what it lacks or has besides: dtype, scaled loss, compiled
    ("cuda", {}, DeviceChoices(BFLOAT16, False, True)),
    ("cuda", dict(triton=None), DeviceChoices(BFLOAT16, False, False)),
    ("cuda", dict(gxx=None), DeviceChoices(BFLOAT16, False, False)),
    ("cuda", dict(bf16=False), DeviceChoices(FLOAT16, True, True)),
    ("cuda", dict(bf16=False, capability=(6, 0)), DeviceChoices(FLOAT16, True, False)),
    ("cpu", dict(avx512_bf16=True), DeviceChoices(BFLOAT16, False, True)),
    ("cpu", dict(amx_bf16=True, gxx=None), DeviceChoices(BFLOAT16, False, False)),
    ("cpu", dict(system="win32"), DeviceChoices(FLOAT32, False, False)),
    ("cpu", dict(header="missing"), DeviceChoices(FLOAT32, False, False)),
    ("mps", {}, DeviceChoices(FLOAT32, False, False)),
]


@pytest.mark.parametrize(("name", "change", "expected"), DEVICES)
def test_each_device_gets_what_suits_it(name, change, expected, monkeypatch, tmp_path):
    has = dict(bf16=True, triton=1, gxx="g++", header="Python.h", capability=(7, 5), system="linux")
    has |= change
    (tmp_path / has["header"]).touch()
    with monkeypatch.context() as patch:  # another machine
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has["bf16"])
        patch.setattr(torch.cuda, "get_device_capability", lambda device: has["capability"])
        patch.setattr(torch.cpu, "get_capabilities", lambda: has)
        patch.setattr(sys, "platform", has["system"])
        patch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
        patch.setattr("shutil.which", lambda command: has["gxx"])
        patch.setattr("importlib.util.find_spec", lambda name: has["triton"])
        choices = device_choices.__wrapped__(torch.device(name))
    assert choices == expected


def test_a_gpu_that_does_not_work_is_passed_over(monkeypatch):
    def broken(*_, **options):
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch, "ones", broken)
    assert hardware.pick_device.__wrapped__().type == "cpu"


def test_a_compiler_that_fails_costs_one_line_and_nothing_else(monkeypatch, capsys):
    def fails(*_):
        raise RuntimeError("g++: internal error\n" + 90 * "a traceback\n")

    choices = DeviceChoices(torch.float32, False, True)
    monkeypatch.setattr(hardware, "device_choices", lambda device: choices)
    monkeypatch.setattr(torch, "compile", fails)
    model = make_model()
    hardware.compile_blocks(model.blocks, torch.device("cpu"))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "g++: internal error" in said
    model(torch.zeros(1, 16, dtype=torch.long))
