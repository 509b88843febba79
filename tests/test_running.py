"""A run ends the same whatever interrupts it; what cannot go on says so in one line."""

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import train as command_line
from conftest import OPTIONS, make_run, tiny
from files import UserError
from hardware import Hardware
from mdlm import training
from mdlm.model import DiffusionTransformer
from mdlm.training import train
from running import memory_is_full, stop_button
from saving import load_checkpoint, load_state

ROOT = Path(__file__).parent.parent
NOISE = 1e-3 if torch.cuda.is_available() else 0.0  # a CPU comes to the same, bit for bit


def state_in(folder):
    """The state that a run left in a folder; {"step": 0} if there is none."""
    state = {"step": 0}
    for path in folder.glob("*.resume.pt"):
        with contextlib.suppress(FileNotFoundError):  # it is being replaced just now
            state = load_state(path)
    return state


def assert_equal_runs(one, other):
    assert one["step"] == other["step"]
    assert one["losses"] == pytest.approx(other["losses"], rel=NOISE)
    bounds = ([row["bpb"] for row in state["history"]] for state in (one, other))
    assert next(bounds) == pytest.approx(next(bounds), rel=NOISE)
    weights = ([*state["model"].values(), *state["average"]] for state in (one, other))
    for p, q in zip(*weights, strict=True):
        torch.testing.assert_close(p, q, rtol=NOISE, atol=10 * NOISE)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL to send")
def test_a_run_killed_again_and_again_ends_like_an_undisturbed_one(tmp_path, text_file):
    options = [*OPTIONS, "--dropout=0.1", "--steps=40", f"--data={text_file}"]
    assert command_line.main([*options, f"--folder={tmp_path / 'whole'}"]) == 0
    folder, chance = tmp_path / "killed", random.Random(0)
    command = [sys.executable, str(ROOT / "train.py"), *options, f"--folder={folder}"]
    for _ in range(3):  # at any moment after a new state has been written, saving included
        before, end = state_in(folder)["step"], time.monotonic() + 300
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while state_in(folder)["step"] == before:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        time.sleep(0.05 * chance.random())
        process.kill()
        assert process.wait() == -signal.SIGKILL
        for path in folder.glob("*.safetensors"):
            load_checkpoint(path, DiffusionTransformer)  # whatever was killed, this is whole
    assert command_line.main(command[2:]) == 0
    assert_equal_runs(state_in(folder), state_in(tmp_path / "whole"))
    assert len(list(folder.iterdir())) == 2  # nothing half-written is left


@pytest.fixture
def press(monkeypatch, in_a_terminal):
    """Presses Ctrl-C in a step; gives the list of the steps that are done from then on."""
    done, usual, when = [], Hardware.parts, {}

    def parts(self, x, t, n, seed):
        done.append(seed - 1_000_003)
        for _ in range(when.get(done[-1], 0)):
            signal.raise_signal(signal.SIGINT)
        return usual(self, x, t, n, seed)

    monkeypatch.setattr(Hardware, "parts", parts)  # not the step: it would be another run's code

    def at(step=None, presses=1):
        done.clear(), when.clear(), when.update({step: presses})
        return done

    return at


@pytest.mark.parametrize(("presses", "goes_on_at"), [(1, 6), (2, 4)])
def test_ctrl_c_saves_and_twice_ends_at_once(presses, goes_on_at, corpus, tmp_path, press):
    config = tiny(dropout=0.1)
    train(config, corpus, tmp_path / "whole")
    done = press(5, presses)
    with pytest.raises(UserError if presses == 1 else KeyboardInterrupt) as caught:
        train(config, corpus, tmp_path / "stopped")
    assert presses == 2 or "stopped at step 6 of 12, and saved" in str(caught.value)
    done = press()
    train(config, corpus, tmp_path / "stopped")
    assert done == list(range(goes_on_at, 12))
    assert_equal_runs(state_in(tmp_path / "stopped"), state_in(tmp_path / "whole"))


def test_a_last_evaluation_that_was_broken_off_is_made_up_for(corpus, tmp_path, press):
    config = tiny(save_every=10**6)
    whole = train(config, corpus, tmp_path / "whole")

    def pressed(model, step):
        if step == config.steps:
            signal.raise_signal(signal.SIGINT)
        return {}

    with pytest.raises(KeyboardInterrupt):
        train(config, corpus, tmp_path, watch=pressed)
    done = press()
    run = train(config, corpus, tmp_path)
    assert done == [] and [row["step"] for row in run.history] == [0, 6, 12]
    assert run.history[-1]["bpb"] == pytest.approx(whole.history[-1]["bpb"], rel=NOISE)
    saved, _, metadata = load_checkpoint(run.path, DiffusionTransformer)
    assert metadata["history"] == run.history
    assert all(map(torch.equal, saved.parameters(), run.model.parameters()))


def test_a_finished_run_is_shown_again_and_a_restart_begins_at_the_first_step(
    corpus, tmp_path, press, capsys
):
    first = train(tiny(), corpus, tmp_path)
    done = press()
    assert train(tiny(), corpus, tmp_path).losses == first.losses and done == []
    assert "from step 12 of 12, as saved (to begin anew" in capsys.readouterr().out
    train(tiny(), corpus, tmp_path, resume=False)
    assert done == list(range(12))


def test_a_damaged_or_unreadable_state_gets_one_line(corpus, tmp_path):
    run = train(tiny(), corpus, tmp_path)
    whole, chance = run.resume_path.read_bytes(), random.Random(0)
    for _ in range(30):
        at = chance.randrange(len(whole))
        run.resume_path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(UserError, match=r"resume\.pt: damaged \([^\n]*--restart\)$"):
            load_state(run.resume_path)
    run.resume_path.write_bytes(whole[:-40])
    with pytest.raises(UserError, match="damaged"):
        train(tiny(), corpus, tmp_path)
    assert train(tiny(), corpus, tmp_path, resume=False).losses == run.losses
    run.resume_path.unlink()
    run.resume_path.mkdir()
    with pytest.raises(UserError, match=r"resume\.pt: cannot be"):
        train(tiny(), corpus, tmp_path)


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_run_does_not_go_on_with_another_text(part, corpus, tmp_path):
    make_run(corpus, tmp_path).save()
    changed = getattr(corpus, part).copy()
    changed[-1] ^= 1
    with pytest.raises(UserError, match="that run was on another text"):
        make_run(dataclasses.replace(corpus, **{part: changed}), tmp_path).restore()


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_what_was_saved(
    corpus, tmp_path, monkeypatch
):
    usual = training.training_loss

    def explodes(model, *arguments):
        return usual(model, *arguments) * (torch.nan if list(tmp_path.glob("*.pt")) else 1)

    monkeypatch.setattr(training, "training_loss", explodes)
    with pytest.raises(UserError, match=r"not a number any more at step 8: .*saved before"):
        train(tiny(), corpus, tmp_path)
    assert state_in(tmp_path)["step"] == 4
    model, _, _ = load_checkpoint(next(tmp_path.glob("*.safetensors")), DiffusionTransformer)
    assert all(p.isfinite().all() for p in model.parameters())
    run = make_run(corpus, tmp_path / "other")
    run.model.embedding.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match="not a number any more"):
        run.save()
    assert not (tmp_path / "other").exists()


def test_a_full_disk_leaves_what_was_there(corpus, tmp_path):
    resource = pytest.importorskip("resource", reason="Windows has no such limits")
    run = make_run(corpus, tmp_path)
    run.save()
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    run.step, limits = 5, resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (1000, run.path.stat().st_size + 5000):  # of the second, the checkpoint fits
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        try:
            with pytest.raises(UserError, match=r"cannot be written \(File too large\)"):
                run.save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert files.keys() == set(tmp_path.iterdir())
        assert run.resume_path.read_bytes() == files[run.resume_path]
        load_checkpoint(run.path, DiffusionTransformer)


def test_what_cannot_be_written_in_the_end_is_said_at_once(corpus, tmp_path, press):
    (tmp_path / "file").write_text("no folder")
    done = press()
    with pytest.raises(UserError, match="cannot be written"):
        train(tiny(), corpus, tmp_path / "file")
    assert done == []


def test_what_a_killed_run_left_is_removed_and_nothing_else(corpus, tmp_path):
    run = make_run(corpus, tmp_path)
    left, other = tmp_path / f"{run.path.name}.1.tmp", tmp_path / "other.safetensors.1.tmp"
    left.touch(), other.touch()
    next(run.steps())
    assert not left.exists() and other.exists()


def test_ctrl_c_that_ends_a_compiler_is_no_error_of_the_compiler(in_a_terminal):
    with pytest.raises(KeyboardInterrupt), stop_button():
        signal.raise_signal(signal.SIGINT)
        raise RuntimeError("g++ failed")
    with pytest.raises(RuntimeError, match="failed"), stop_button():
        raise RuntimeError("g++ failed")


FULL = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("MPS backend out of memory"),
    RuntimeError("DefaultCPUAllocator: not enough memory"),  # on Windows
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
    MemoryError(),
]


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_full_memory_says_what_to_do(error, text_file, tmp_path, monkeypatch, capsys):
    assert memory_is_full(error) and not memory_is_full(RuntimeError("shapes do not match"))

    def full(*_):
        raise error

    monkeypatch.setattr(training, "training_step", full)
    assert command_line.main([*OPTIONS, f"--data={text_file}", f"--folder={tmp_path}"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "--activation-checkpointing" in said and "--accumulation 2" in said


def test_a_watched_run_keeps_the_guesses_of_every_evaluation(corpus, tmp_path, capsys):
    from running import make_watch

    mask = corpus.tokenizer.mask_id
    z = torch.tensor([[int(corpus.val[0]), mask, int(corpus.val[2])]])
    watch = make_watch(corpus.tokenizer, z, training.write_one_by_one)
    run = train(tiny(), corpus, tmp_path, watch=watch)
    for row in run.history:
        assert len(row["guess"]) == len(row["sample"]) == 3 and mask not in row["guess"]
        assert row["guess"][::2] == z[0, ::2].tolist()
    shown = capsys.readouterr()
    assert (shown.out + shown.err).count("step ") >= len(run.history) == 3
