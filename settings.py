"""The settings of a training run: their defaults, presets for different machines, and checks.

The notebooks and train.py all begin with `settings(...)`. To add a setting of your own, add a line
to `Config`: it becomes an option of train.py, and part of a run's name.
"""

import difflib
from dataclasses import asdict, dataclass, fields

from files import UserError


@dataclass
class Config:
    """One training run. The defaults are the preset "medium"; `PRESETS` says what others change."""

    # the text
    corpus: str = "kjv"  # or "shakespeare", a UTF-8 .txt file, a folder made by prepare.py
    vocab_size: int = 2048  # tokens: 256 bytes, the mask, and the rest learned
    # the network
    context: int = 128  # tokens that the network sees at once (L)
    n_layers: int = 6  # blocks, one after the other
    d_model: int = 256  # width of the residual stream (C)
    n_heads: int = 4  # of attention, in each block
    qk_norm: bool = True  # normalise queries and keys
    time_conditioning: bool = False  # tell the network t as well (it can count the masks itself)
    causal: bool = False  # the autoregressive twin: every token sees only those before it
    block: int = 0  # write in blocks of so many tokens, from left to right (0: the whole context)
    dropout: float = 0.0  # share of each layer's output zeroed at random, for texts read many times
    # the loss
    loss: str = "counts"  # draw a number of masks; "time": draw a time t, as in the paper
    rate_power: float = 0.5  # training weighs a text by its share of masks to this power
    schedule: str = "linear"  # with the loss "time": a name in the notebook's SCHEDULES
    # the training
    steps: int = 3000
    batch_size: int = 32  # windows per step
    short_windows: float = 0.25  # share of steps on shorter windows, more of them
    accumulation: int = 1  # split each batch into so many parts (when memory is short)
    optimizer: str = "muon"  # of the blocks' matrices; "adamw": one optimiser for everything
    muon_lr: float = 0.0025  # peak learning rate of Muon
    adamw_lr: float = 2e-3  # and of AdamW
    warmup: int = 100  # steps of rising learning rate
    weight_decay: float = 0.1  # of the blocks' matrices
    clip: float = 1.0  # largest norm of the gradient
    ema: float = 0.998  # decay of the averaged weights that are evaluated and saved
    seed: int = 1
    # evaluating and saving
    eval_every: int = 250  # steps between two evaluations on validation text
    eval_windows: int = 128  # windows of validation text for each (the last evaluation reads all)
    save_every: int = 250  # steps between two checkpoints
    compile: bool = True  # torch.compile the blocks, where the machine can
    activation_checkpointing: bool = False  # compute blocks twice to keep less of them in memory

    def __post_init__(self):
        check(self)


SMALL = dict(vocab_size=8192, n_layers=4, d_model=128, n_heads=2, batch_size=16, adamw_lr=6e-3)
LARGE = SMALL | dict(context=256, d_model=256, n_heads=4, dropout=0.1)
PRESETS = {
    "quick": SMALL | dict(steps=400, eval_every=50),  # a first look: two minutes on an older CPU
    "small": SMALL,  # 1.9 million parameters: the default on every CPU
    "medium": {},  # 5.3 million, three times the work
    "cuda": dict(  # about 43 million parameters
        vocab_size=8192,
        context=512,
        n_layers=12,
        d_model=512,
        n_heads=8,
        steps=1500,  # the book, 65 times; a longer text deserves more
        batch_size=64,
        adamw_lr=1e-3,
        dropout=0.1,
        ema=0.999,
    ),
    # the models in checkpoints/, each made in about an hour
    "included": LARGE | dict(steps=3200, eval_every=400, save_every=100),
    "included-twin": LARGE  # is done sooner, and memorises the book if it may
    | dict(causal=True, short_windows=0.0, muon_lr=0.01)  # a rate found for it
    | dict(steps=1000, eval_every=200, save_every=100),
    "included-blocks": LARGE  # in blocks of four tokens
    | dict(block=4, short_windows=0.0, muon_lr=0.005)
    | dict(steps=1800, eval_every=300, save_every=100),
}
CHOICES = {
    "optimizer": ("muon", "adamw"),
    "loss": ("counts", "time"),
}


def usual_preset():
    """The preset for this machine: "cuda" for such a GPU, else "small"."""
    from hardware import pick_device  # not above: who asks for --help should not wait for PyTorch

    return "cuda" if pick_device().type == "cuda" else "small"


def settings(preset="auto", **changes):
    """The `Config` of a preset, with changes; a change to None leaves the preset's value.

    Raises UserError for an unknown name or a value that cannot work.
    """
    if preset == "auto":
        preset = usual_preset()
    if preset not in PRESETS:
        raise UserError(f"no preset {preset!r}{nearest(preset, ['auto', *PRESETS])}")
    names = [field.name for field in fields(Config)]
    for name in changes:
        if name not in names:
            raise UserError(f"no setting {name!r}{nearest(name, names)}")
    changes = {name: value for name, value in changes.items() if value is not None}
    return Config(**{**PRESETS[preset], **changes})


def show(config):
    """Print where a run would be trained, and its settings beside those of the presets."""
    import torch

    from hardware import device_choices, pick_device

    device = pick_device()
    print(f"{device}, matrix products in {device_choices(device).dtype}", end=", ")
    print(f"{torch.get_num_threads()} threads\n")
    columns = {name: asdict(settings(name)) for name in ("quick", "small", "medium", "cuda")}
    print(f"{'':<24}{'this run':>10}", *(f"{name:>10}" for name in columns))
    for name, value in asdict(config).items():
        values = [str(column[name]) for column in columns.values()]
        if {*values} != {str(value)}:
            print(f"{name:<24}{value!s:>10}", *(f"{v:>10}" for v in values))


def nearest(name, names):
    """What was probably meant: the end of an error message."""
    found = difflib.get_close_matches(str(name), names, 1)
    return f": did you mean {found[0]!r}?" if found else f": there is {', '.join(names)}"


def kind(config):
    """How the names of a network's checkpoints end: "-twin", "-blocks", or "" for diffusion."""
    return "-twin" if config.causal else "-blocks" if config.block else ""


def check(config):
    """Raise UserError, naming the cause and the cure, if a setting makes no sense."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type is float and type(value) is int:
            setattr(config, field.name, value := float(value))
        if type(value) is not field.type:
            raise UserError(f"{field.name} must be {field.type.__name__}, not {value!r}")
        may_be_0 = field.name in (
            "block", "warmup", "weight_decay", "dropout", "ema", "seed", "short_windows",
            "rate_power",
        )  # fmt: skip
        if field.type in (int, float) and not (0 < value < 1e9 or (may_be_0 and value == 0)):
            least = "at least" if may_be_0 else "greater than"
            raise UserError(f"{field.name} must be {least} 0 and below 1e9, not {value}")
        if value not in CHOICES.get(field.name, [value]):
            raise UserError(f"no {field.name} {value!r}{nearest(value, CHOICES[field.name])}")
    if config.block and config.context % config.block:
        fits = max(n for n in range(1, config.block) if config.context % n == 0)
        raise UserError(
            f"block ({config.block}) must divide the context ({config.context}): try {fits}"
        )
    for name in ("causal", "time_conditioning", "activation_checkpointing"):
        if config.block and getattr(config, name):
            raise UserError(f"{name} is not for blocks: leave it out, or set block to 0")
    if config.block and config.loss == "time":
        raise UserError('blocks draw numbers of masks: set loss="counts", or block to 0')
    if config.causal and config.time_conditioning:
        raise UserError("time_conditioning is not for the twin (causal), which knows no time")
    if config.schedule != "linear" and config.loss != "time":
        raise UserError(
            f'schedule "{config.schedule}" is for loss="time" (train.py --loss time) only: else '
            "the number of masks is drawn, whatever the schedule"
        )
    if config.context > 65536:
        raise UserError(f"context must be at most 65536 tokens, not {config.context}")
    if not 257 <= config.vocab_size <= 1_000_000:
        raise UserError(
            "vocab_size must be from 257 (256 bytes and the mask) to 1,000,000, "
            f"not {config.vocab_size}"
        )
    width = 2 * config.n_heads
    if config.d_model % width:
        raise UserError(
            f"d_model ({config.d_model}) must divide into {config.n_heads} heads of even "
            f"width: try {max(1, config.d_model // width) * width}"
        )
    for name in ("ema", "dropout", "short_windows"):
        if getattr(config, name) >= 1:
            raise UserError(f"{name} must be from 0 to below 1, not {getattr(config, name)}")
    if config.accumulation > config.batch_size:
        raise UserError(
            f"accumulation ({config.accumulation}) splits a batch of {config.batch_size}: "
            f"it can be {config.batch_size} at most"
        )
