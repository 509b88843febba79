"""A training run, seen from outside: resuming, saving, progress, Ctrl-C, several processes.

The loop itself is in train_model.ipynb. It draws its steps from `Run.steps`, and everything that is
not an idea happens there, between two steps.
"""

import contextlib
import math
import signal
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from files import UserError, check_writable, remove_half_written
from hardware import Hardware, compile_blocks, rank_and_world, sum_over_processes
from saving import load_state, run_name, save_checkpoint, save_state

AGAIN = "delete it, or start again (resume = False, or train.py --restart)"


class Run:
    """A training run: what is trained, what was measured, and the files it lives in.

    model, optimizers (a list) and ema come from the notebook; `code` is a digest of the code that
    trains them. A finished step is counted in `step`; `losses` has the loss of each in nats per
    token, `history` a dict for each evaluation.
    """

    def __init__(self, config, corpus, model, optimizers, ema, code, folder="checkpoints"):
        self.config, self.corpus, self.code, self.text = config, corpus, code, corpus.digest()
        self.model, self.optimizers, self.ema = model, optimizers, ema
        self.device = model.embedding.weight.device
        self.hardware = Hardware(self.device)
        self.path = Path(folder) / f"{run_name(config, code)}.safetensors"
        self.resume_path = self.path.with_suffix(".resume.pt")
        self.step, self.seconds, self.losses, self.history = 0, 0.0, [], []
        self.saved_at = None  # when this process last wrote or read the state
        self.bar = tqdm(disable=True)
        self.rank, self.world = rank_and_world()
        if self.device.type == "mps" and config.activation_checkpointing and config.dropout:
            raise UserError(  # its random state cannot be put back for the second forward pass
                "on an Apple GPU activation_checkpointing needs dropout=0: use accumulation instead"
            )
        if self.world > -(-config.batch_size // -(-config.batch_size // config.accumulation)):
            raise UserError(
                f"{self.world} processes share a batch of {config.accumulation} part(s): set "
                f"accumulation to {self.world}, or to a multiple of it"
            )

    def steps(self, resume=True):
        """Yields the number of each step that is still to be done; the caller does it.

        Resumes where the run stopped, saves every `config.save_every` steps, at the end, when
        interrupted, and when the text can no longer be read. Raises UserError when interrupted, and
        if a loss is no longer a number.
        """
        config = self.config
        if self.rank == 0:  # at once, and not after the first 250 steps
            check_writable(self.resume_path)
            remove_half_written(self.path.parent, lambda name: name.startswith(self.path.stem))
        if resume and self.resume_path.exists():
            self.restore()
        self.check_same_files()
        if self.step < config.steps and config.compile:
            compile_blocks(self.model.blocks, self.device)
        self.bar = tqdm(
            total=config.steps, initial=self.step, unit="step", leave=False, disable=self.rank > 0
        )
        with self.bar, stop_button() as stopped:
            stop = False
            while self.step < config.steps and not stop:
                start, paused = time.perf_counter(), self.seconds
                try:
                    yield self.step
                except GeneratorExit:  # the caller's loop was left, as an error leaves it
                    self.save_after_error()
                    raise
                self.seconds = paused + time.perf_counter() - start - self.evaluation_seconds
                self.evaluation_seconds = 0.0
                self.step += 1
                stop = self.any_process(stopped())
                due = self.step == config.steps or self.step % config.save_every == 0
                if stop or due or self.step % 10 == 0:
                    self.read_losses()
                self.show_progress()
                if stop or due:
                    self.save()
        for block in self.model.blocks:  # whatever comes now has other shapes, each to be compiled
            block._compiled_call_impl = None
        if self.step < config.steps:
            if self.world > 1:  # whoever leaves first would end the one that saves
                dist.barrier()
            raise UserError(
                f"stopped at step {self.step} of {config.steps}, and saved: run again to go on"
            )

    # what the loop tells a run

    evaluation_seconds = 0.0  # they are not training time

    def needs_evaluation(self):
        """Whether it is time for one, and there is none yet: also at the start, and at the end."""
        due = self.step % self.config.eval_every == 0 or self.step == self.config.steps
        return due and not any(row["step"] == self.step for row in self.history)

    @contextlib.contextmanager
    def evaluating(self):
        """Inside this context the model has the averaged weights, and the clock stands still.

        Gives `progress(part)`, to be told which part of the evaluation is done, from 0 to 1. After
        the last evaluation everything is saved once more, with what was recorded.
        """
        start, percent = time.perf_counter(), "evaluating: {percentage:3.0f} %"
        bar = tqdm(
            total=1.0, bar_format=percent, leave=False, mininterval=0.5, disable=self.rank > 0
        )
        with self.ema.applied(), bar:
            yield lambda part: bar.update(part - bar.n)
        self.evaluation_seconds += time.perf_counter() - start
        if self.step == self.config.steps:  # not inside, where the model has other weights
            self.save()

    def record(self, **row):
        """Add the result of an evaluation to the history."""
        tokens = self.step * self.config.batch_size * self.config.context
        self.history.append(dict(step=self.step, tokens=tokens, seconds=self.seconds, **row))

    # files

    def metadata(self):
        """What a checkpoint says about its run."""
        return dict(
            steps=self.step,
            seconds=self.seconds,
            history=self.history,
            device=str(self.device),
            parameters=sum(p.numel() for p in self.model.parameters()),
            code=self.code,
            text=self.text,
        )

    def state(self):
        """All that changes as a run goes on, but for the weights' optimisers."""
        return {name: getattr(self, name) for name in ("step", "seconds", "losses", "history")}

    def save(self):
        """Write the checkpoint, and what training needs to go on; each file whole or not at all.

        Raises UserError, and keeps the files that are there, if a weight is no number.
        """
        if self.rank > 0:
            return
        if not all(p.isfinite().all() for p in self.model.parameters()):
            raise self.diverged()
        with self.ema.applied():
            save_checkpoint(self.path, self.model, self.corpus.tokenizer, self.metadata())
        state = dict(
            model=self.model.state_dict(),
            average=self.ema.average,
            n_updates=self.ema.n_updates,
            optimizers=[optimizer.state_dict() for optimizer in self.optimizers],
            scaler=self.hardware.scaler.state_dict(),
            text=self.text,
            **self.state(),
        )
        if self.saved_at not in (None, self.modified()):
            raise UserError(f"{self.path.stem}: another program trains the same run; this one ends")
        save_state(self.resume_path, state)
        self.saved_at = self.modified()

    def save_after_error(self):
        """Save the finished steps if the error was that the text could not be read.

        A step reads its windows before it changes a weight. Any other error may have left a step
        half done, and saves nothing.
        """
        parts = self.corpus.train, self.corpus.val
        if self.step > 0 and any(getattr(part, "unread", False) for part in parts):
            with contextlib.suppress(UserError):  # the step's own error is the one to be told
                self.read_losses()
                self.save()

    def modified(self):
        """When the file of the state was written; None if there is none."""
        return self.resume_path.stat().st_mtime_ns if self.resume_path.exists() else None

    def restore(self):
        """Go on from the saved state. Raises UserError if it is damaged, or of another text."""
        state, self.saved_at = load_state(self.resume_path), self.modified()
        if state["text"] != self.text:
            raise UserError(f"{self.resume_path}: that run was on another text; {AGAIN}")
        self.model.load_state_dict(state["model"])
        for average, saved in zip(self.ema.average, state["average"], strict=True):
            average.copy_(saved)
        self.ema.n_updates = state["n_updates"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if state["scaler"]:  # empty if it was saved where no loss is scaled
            self.hardware.scaler.load_state_dict(state["scaler"])
        for name in self.state():
            setattr(self, name, state[name])
        if self.rank == 0:
            tqdm.write(
                f"{self.path.stem}: from step {self.step:,} of {self.config.steps:,}, as saved "
                "(to begin anew: resume = False, or train.py --restart)"
            )

    # between the steps

    def read_losses(self):
        """Turn the last steps' losses into numbers. Raises UserError if one is not a number."""
        new = [loss for loss in self.losses if torch.is_tensor(loss)]
        if new:  # reading them makes a GPU wait: so not every step
            self.losses[-len(new) :] = torch.stack(new).tolist()
        if not all(map(math.isfinite, self.losses[-10:])):
            raise self.diverged()

    def diverged(self):
        """What to say when numbers have grown beyond all bounds."""
        kept = f"; what was saved before stays in {self.path}" if self.path.exists() else ""
        return UserError(
            f"the loss is not a number any more at step {self.step}: try a smaller muon_lr and "
            f"adamw_lr{kept}"
        )

    def any_process(self, asked):
        """Whether this or another process has been asked to stop."""
        votes = torch.tensor([float(asked)])
        sum_over_processes([votes], self.device)
        return votes.item() > 0

    def check_same_files(self):
        """Raise UserError if several processes do not resume from the same step."""
        steps = torch.tensor([float(self.step)])
        sum_over_processes([steps], self.device)
        if steps.item() != self.world * self.step:
            raise UserError(
                f"the processes do not see the same files in {self.path.parent}: share that folder"
            )

    def show_progress(self):
        """Move the progress bar."""
        read = [loss for loss in self.losses[-100:] if not torch.is_tensor(loss)]
        tokens = self.step * self.config.batch_size * self.config.context
        facts = {"loss": f"{sum(read) / len(read):.3f}" if read else "-"}
        if self.history:
            facts["validation bits/byte"] = f"{self.history[-1]['bpb']:.3f}"
        facts["tokens/s"] = f"{tokens / self.seconds:,.0f}"
        self.bar.set_postfix(facts, refresh=False)
        self.bar.update()


@contextlib.contextmanager
def stop_button():
    """Gives a function that says whether Ctrl-C was pressed. A second press interrupts at once."""
    asked = []
    if threading.current_thread() is not threading.main_thread():  # only that one gets signals
        yield lambda: False
        return
    usual = signal.getsignal(signal.SIGINT)

    def ask(*_):
        asked.append(True)
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    except RuntimeError:  # Ctrl-C reaches a compiler that is at work, too, and ends it
        if asked:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, usual)


def memory_is_full(error):
    """Whether an error says that a GPU's or the machine's memory is full."""
    signs = ("out of memory", "not enough memory", "allocate memory")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def make_watch(tokenizer, z, write):
    """A function (model, step) -> {"guess": ids, "sample": ids}, which prints both.

    z: (1, L) token ids with masks, to be filled with the likeliest tokens; write(model, z,
    generator) is a sampler, for which all of z is masked.
    """

    def watch(model, step):
        text, noise = z.to(model.embedding.weight.device), torch.Generator().manual_seed(1)
        masked = text == tokenizer.mask_id
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # not for a text or two
            guess = model(text, masked.float().mean(dim=1)).argmax(dim=-1)[0].tolist()
            sample = write(model, torch.full_like(text, tokenizer.mask_id), noise)[0].tolist()
        shown = [
            f"[{tokenizer.show(i)}]" if hidden else tokenizer.show(i)
            for i, hidden in zip(guess, masked[0].tolist(), strict=True)
        ]
        line = f"step {step:>5}  {''.join(shown)}  |  {tokenizer.decode(sample)}"
        tqdm.write(line.replace("\n", " "))
        return {"guess": guess, "sample": sample}

    return watch
