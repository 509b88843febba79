"""What all tests share. The Python blocks of the learning guide are tests, too."""

import pytest
import torch
from hypothesis import settings
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import mdlm.training

settings.register_profile("any machine", deadline=None)  # one may be busy with something else
settings.load_profile("any machine")

pytest_collect_file = Sybil(  # the blocks run in order, in one namespace
    parsers=[PythonCodeBlockParser()], patterns=["learning_guide.md"]
).pytest()


@pytest.fixture
def in_float32(monkeypatch):
    """Matrix products are exact to seven digits, on every machine."""
    choices = mdlm.training.DeviceChoices(torch.float32, False, False, False)
    monkeypatch.setattr(mdlm.training, "device_choices", lambda device: choices)
