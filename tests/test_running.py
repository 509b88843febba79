"""A run ends the same whatever interrupts it; what cannot go on says so in one line."""

import contextlib
import dataclasses
import os
import random
import signal
import time

import pytest
import torch

import train as command_line
from conftest import FORK, OPTIONS, make_run, tiny
from files import UserError
from hardware import Hardware
from mdlm import training
from mdlm.model import DiffusionTransformer
from mdlm.training import train
from running import make_watch, memory_is_full
from saving import load_checkpoint, load_state
from shards import Shards

NOISE = 1e-3 if torch.cuda.is_available() else 0.0  # a CPU comes to the same, bit for bit


def state_in(folder):
    """The state that a run left in a folder; {"step": 0} if there is none."""
    state = {"step": 0}
    for path in folder.glob("*.resume.pt"):
        with contextlib.suppress(UserError):  # it is being replaced just now
            state = load_state(path)
    return state


def assert_equal_runs(*folders):
    one, other = (
        [s["losses"], [row["bpb"] for row in s["history"]], *s["model"].values(), *s["average"]]
        for s in map(state_in, folders)
    )
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=NOISE, atol=10 * NOISE)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL to send")
def test_a_run_killed_again_and_again_ends_like_an_undisturbed_one(tmp_path, text_file):
    options = [*OPTIONS, "--dropout=0.1", "--steps=40", f"--data={text_file}"]
    assert command_line.main([*options, f"--folder={tmp_path / 'whole'}"]) == 0
    folder, chance = tmp_path / "killed", random.Random(0)
    options = [*options, f"--folder={folder}"]
    for _ in range(3):  # at any moment after a new state has been written, saving included
        before, end = state_in(folder)["step"], time.monotonic() + 300
        process = FORK.Process(target=command_line.main, args=(options,))
        process.start()
        while state_in(folder)["step"] == before:
            assert process.is_alive() and time.monotonic() < end
            time.sleep(0.01)
        time.sleep(0.05 * chance.random())
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        for path in folder.glob("*.safetensors"):
            load_checkpoint(path, DiffusionTransformer)  # whatever was killed, this is whole
    assert command_line.main(options) == 0
    assert_equal_runs(folder, tmp_path / "whole")
    assert len(list(folder.iterdir())) == 2  # nothing half-written is left


@pytest.fixture
def after_step(monkeypatch, in_a_terminal):
    """after_step(n, do): do something as soon as the weights have changed in step n.

    Returns the list of the steps that are done from then on.
    """
    done, plan, usual_parts, usual_step = [], {}, Hardware.parts, Hardware.step

    def parts(self, x, t, n, seed):
        done.append(seed - 1_000_003)
        return usual_parts(self, x, t, n, seed)

    def step(self, *given):
        usual_step(self, *given)
        if done[-1] in plan:
            plan[done[-1]]()

    monkeypatch.setattr(Hardware, "parts", parts)  # not the step: it would be another run's code
    monkeypatch.setattr(Hardware, "step", step)

    def after_step(n=None, do=None):
        done.clear()
        plan.clear()
        plan[n] = do
        return done

    return after_step


@pytest.mark.parametrize(("presses", "goes_on_at"), [(1, 6), (2, 4)])
def test_ctrl_c_saves_and_twice_ends_at_once(presses, goes_on_at, corpus, tmp_path, after_step):
    def press():
        for _ in range(presses):
            signal.raise_signal(signal.SIGINT)

    config = tiny(dropout=0.1)
    train(config, corpus, tmp_path / "whole")
    after_step(5, press)
    with pytest.raises((UserError, KeyboardInterrupt)) as caught:
        train(config, corpus, tmp_path / "stopped")
    assert ("stopped at step 6 of 12, and saved" in str(caught.value)) == (presses == 1)
    done = after_step()
    train(config, corpus, tmp_path / "stopped")
    assert done == list(range(goes_on_at, 12))
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")


def test_a_last_evaluation_that_was_broken_off_is_made_up_for(corpus, tmp_path, after_step, capsys):
    config = tiny(save_every=10**6)
    whole = train(config, corpus, tmp_path / "whole")

    def pressed(model, step):
        return {} if step < 12 else signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(config, corpus, tmp_path, watch=pressed)
    done = after_step()
    run = train(config, corpus, tmp_path)
    assert "from step 12 of 12, as saved (to begin anew" in capsys.readouterr().out
    assert done == [] and [row["step"] for row in run.history] == [0, 6, 12]
    assert run.history[-1]["bpb"] == pytest.approx(whole.history[-1]["bpb"], rel=NOISE)
    saved, _, metadata = load_checkpoint(run.path, DiffusionTransformer, "cpu")
    assert metadata["history"] == run.history
    assert all(map(torch.equal, saved.parameters(), run.model.cpu().parameters()))
    train(config, corpus, tmp_path, resume=False)
    assert done == list(range(12))


def test_a_damaged_or_unreadable_state_gets_one_line(corpus, tmp_path):
    run = train(tiny(), corpus, tmp_path)
    whole, chance = run.resume_path.read_bytes(), random.Random(0)
    for i in range(8):
        at = chance.randrange(len(whole))
        run.resume_path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) * (i % 2) + whole[at + 1 :])
        with pytest.raises(UserError, match=r"resume\.pt: damaged \([^\n]*--restart\)$"):
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


def on_disk(corpus, part, path):
    """The corpus with one of its parts in a file."""
    tokens = getattr(corpus, part)
    tokens.tofile(path)
    shards = Shards([path], [len(tokens)], tokens.dtype, "")
    return dataclasses.replace(corpus, **{part: shards})


@pytest.mark.parametrize(("part", "stops_at"), [("train", 7), ("val", 6)])
def test_a_text_that_vanishes_costs_no_step(part, stops_at, corpus, tmp_path, after_step):
    config, path, away = tiny(dropout=0.1, save_every=5), tmp_path / "text.bin", tmp_path / "away"
    corpus = on_disk(corpus, part, path)
    train(config, corpus, tmp_path / "whole")
    after_step(stops_at - 1, lambda: path.rename(away))
    with pytest.raises(UserError, match=r"text\.bin: cannot be read"):
        train(config, corpus, tmp_path / "stopped")
    assert state_in(tmp_path / "stopped")["step"] == stops_at
    away.rename(path)
    done = after_step()
    train(config, corpus, tmp_path / "stopped")
    assert done == list(range(stops_at, 12))
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")


def test_another_error_in_a_step_saves_nothing(corpus, tmp_path, after_step):
    after_step(6, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tiny(), on_disk(corpus, "train", tmp_path / "text.bin"), tmp_path)
    assert state_in(tmp_path)["step"] == 4


def test_two_programs_do_not_train_one_run(corpus, tmp_path):
    first, second = make_run(corpus, tmp_path), make_run(corpus, tmp_path)
    first.save()
    second.restore()
    os.utime(first.resume_path, (1, 1))  # saved by the first meanwhile
    with pytest.raises(UserError, match="another program trains the same run"):
        second.save()


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_what_was_saved(
    corpus, tmp_path, monkeypatch
):
    usual = training.training_loss

    def explodes(model, *given):
        return usual(model, *given) * (torch.nan if list(tmp_path.glob("*.pt")) else 1)

    monkeypatch.setattr(training, "training_loss", explodes)
    with pytest.raises(UserError, match=r"not a number any more at step 8: .*saved before"):
        train(tiny(), corpus, tmp_path)
    assert state_in(tmp_path)["step"] == 4


def test_a_full_disk_leaves_what_was_there(corpus, tmp_path):
    resource = pytest.importorskip("resource", reason="Windows has no such limits")
    run = make_run(corpus, tmp_path)
    run.save()
    files, limits = set(tmp_path.iterdir()), resource.getrlimit(resource.RLIMIT_FSIZE)
    run.step = 5
    for most in (1000, run.path.stat().st_size + 5000):  # the second: the checkpoint fits
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        try:
            with pytest.raises(UserError, match=r"cannot be written \(File too large\)"):
                run.save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert files == set(tmp_path.iterdir()) and state_in(tmp_path)["step"] == 0
        load_checkpoint(run.path, DiffusionTransformer)


def test_a_run_begins_by_trying_to_write_and_removes_what_a_killed_one_left(corpus, tmp_path):
    run = make_run(corpus, tmp_path)
    left, other = tmp_path / f"{run.path.name}.1.tmp", tmp_path / "other.safetensors.1.tmp"
    left.touch(), other.touch()
    next(run.steps())
    assert not left.exists() and other.exists()
    with pytest.raises(UserError, match="cannot be written"):
        next(make_run(corpus, other).steps())


FULL = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("MPS backend out of memory"),
    RuntimeError("DefaultCPUAllocator: not enough memory"),  # on Windows
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
    MemoryError(),
]


def test_a_full_memory_says_what_to_do(text_file, tmp_path, monkeypatch, capsys):
    assert all(map(memory_is_full, FULL)) and not memory_is_full(RuntimeError("two shapes"))

    def full(*_):
        raise FULL[0]

    monkeypatch.setattr(training, "training_step", full)
    assert command_line.main([*OPTIONS, f"--data={text_file}", f"--folder={tmp_path}"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "--activation-checkpointing" in said and "--accumulation 2" in said


def test_a_watched_run_keeps_the_guesses_of_every_evaluation(corpus, tmp_path, capsys):
    mask, val = corpus.tokenizer.mask_id, corpus.val.tolist()
    z = torch.tensor([[val[0], mask, val[2]]])
    watch = make_watch(corpus.tokenizer, z, training.write_one_by_one)
    run = train(tiny(), corpus, tmp_path, watch=watch)
    for row in run.history:
        assert len(row["guess"]) == len(row["sample"]) == 3 and mask not in row["guess"]
        assert row["guess"][::2] == [val[0], val[2]]
    assert capsys.readouterr().out.count("step ") == len(run.history) == 3
