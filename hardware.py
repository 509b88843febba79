"""What differs between machines: devices, number types, the compiler, several processes.

Everything here would be in the way of the story, so the notebooks only call it: `autocast` around a
forward pass, and a `Hardware` whose methods stand where a training step has to do with the machine.
"""

import contextlib
import functools
import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from files import UserError


class DeviceChoices(NamedTuple):
    """See `device_choices`."""

    dtype: torch.dtype  # of matrix products
    scale_loss: bool  # does that type need a GradScaler?
    compile: bool  # can torch.compile work?


@functools.cache
def pick_device():
    """The best device of this machine: a CUDA GPU that works, else Apple's (MPS), else the CPU."""
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):  # too old or too new for this PyTorch
            torch.ones(1, device="cuda").add(1).item()
            return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def cpu_has_bfloat16():
    """Whether the CPU has instructions that multiply bfloat16 numbers (AVX512-BF16 or AMX)."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


@functools.cache
def device_choices(device):
    """What suits a device (torch.device).

    bfloat16 keeps float32's range and gives up digits: nothing overflows. float16, on older GPUs,
    does the opposite: its smallest gradients would become zero, so the loss is scaled up before the
    backward pass, and the gradients are scaled down again after it.

    | device                       | products | scaled loss | compiled (needs Python.h) |
    |------------------------------|----------|-------------|---------------------------|
    | CUDA, Ampere (2020) or later | bfloat16 | no          | Triton and a C compiler   |
    | CUDA before that (T4, ...)   | float16  | yes         | the same, from Volta on   |
    | CPU, AVX512-BF16 or AMX      | bfloat16 | no          | Linux and g++             |
    | CPU without                  | float32  | no          | Linux and g++             |
    | Apple GPU (MPS)              | float32  | no          | no                        |
    """
    header = (Path(sysconfig.get_paths()["include"]) / "Python.h").exists()
    if device.type == "cuda":
        new = torch.cuda.is_bf16_supported(including_emulation=False)
        compilers = os.environ.get("CC", "gcc clang").split()
        builds = sys.platform == "win32" or any(map(shutil.which, compilers))
        builds = builds and importlib.util.find_spec("triton") is not None and header
        builds = builds and torch.cuda.get_device_capability(device) >= (7, 0)
        return DeviceChoices(torch.bfloat16 if new else torch.float16, not new, builds)
    if device.type == "cpu":
        dtype = torch.bfloat16 if cpu_has_bfloat16() else torch.float32
        compiler = shutil.which(os.environ.get("CXX", "g++"))
        return DeviceChoices(dtype, False, sys.platform == "linux" and header and bool(compiler))
    return DeviceChoices(torch.float32, False, False)


def autocast(device):
    """Context in which matrix products run in the type that suits `device`."""
    dtype = device_choices(device).dtype
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def to_device(x, device):
    """A tensor of the CPU on `device`; on a GPU the copy goes on while it computes."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def compile_blocks(blocks, device):
    """Compile a network's blocks, where that works: they are alike, and so compiled only once.

    torch.compile fuses what stands between the matrix products.
    """
    if not device_choices(device).compile:
        return
    try:  # a compiler may be there and fail: an old one, a full disk
        torch.compile(lambda x: x.sin() + x)(torch.ones(8, device=device))
    except Exception as error:
        line = str(error).strip().partition("\n")[0][:150]
        print(f"not compiled, which is slower: the compiler fails ({line})", file=sys.stderr)
        return
    for block in blocks:
        block.compile()


# ------------------------------------------------------------------------------------------------
# Several processes: torchrun starts the program once for each GPU


def rank_and_world():
    """(number of this process, how many there are): (0, 1) unless torchrun started several."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def join_processes():
    """Find the other processes, if torchrun has started several. Returns this one's number."""
    if "RANK" not in os.environ:
        return 0
    cuda = pick_device().type == "cuda"
    if cuda:
        n_processes, n_gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if n_processes > n_gpus:
            raise UserError(f"{n_processes} processes, but {n_gpus} GPU(s): one process for each")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda and dist.is_nccl_available() else "gloo")
    return dist.get_rank()


def leave_processes():
    """Wait for the others; from here on each is by itself."""
    if rank_and_world()[1] > 1:
        dist.barrier()
        dist.destroy_process_group()


def sum_over_processes(tensors, device):
    """Replace each tensor by its sum over all processes, all in one message."""
    if rank_and_world()[1] == 1:
        return
    device = "cpu" if device.type == "mps" else device  # gloo sends nothing from there
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors]).to(device)
    dist.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def my_share(parts):
    """Yields (number, part) for those of a list of parts that are this process's to do."""
    rank, world = rank_and_world()
    yield from ((i, part) for i, part in enumerate(parts) if i % world == rank)


def over_batches(loss, model, x, k, progress=lambda part: None):
    """loss(model, x, k, generator) -> (B,) of all windows x (N, L), a batch at a time. (N,) float64

    k: (N,) numbers of masks. A batch has as many rows as training finds room for, and random
    numbers of its own; several processes share them. progress(part): how much is done, 0 to 1.
    """
    found, config = torch.zeros(len(x), dtype=torch.float64), model.config
    device = model.embedding.weight.device
    batches = torch.arange(len(x)).split(-(-config.batch_size // config.accumulation))
    for i, rows in my_share(batches):
        progress(i / len(batches))
        noise = torch.Generator().manual_seed(i)
        # compiling the network again for each shape would take longer than just running it
        with autocast(device), torch.compiler.set_stance("force_eager"):
            found[rows] = loss(model, x[rows].to(device), k[rows], noise).cpu().double()
    progress(1.0)
    sum_over_processes([found], device)
    return found


class Hardware:
    """What a training step has to do with the machine. It holds the scale of a float16 loss."""

    def __init__(self, device):
        self.device, scaled = device, device_choices(device).scale_loss
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # what stays float32 may use TF32

    def parts(self, x, t, n, seed):
        """Split a batch x (B, L), t (B,) into n parts. Yields this process's: (x, t, generator).

        Each part has random numbers of its own, dropout's included, whichever process computes it.
        """
        for i, (x_part, t_part) in my_share(zip(x.chunk(n), t.chunk(n), strict=True)):
            part_seed = seed + i * 2_654_435_761  # only 32 bits of a seed count on a CPU
            torch.manual_seed(part_seed)
            generator = torch.Generator().manual_seed(part_seed + 1)
            yield to_device(x_part, self.device), t_part, generator

    def autocast(self):
        """Context in which matrix products run in the type that suits the device."""
        return autocast(self.device)

    def backward(self, loss):
        """Add the gradient of a part's loss to what the parts before it gave."""
        self.scaler.scale(loss).backward()

    def finish_gradient(self, model, optimizers, loss):
        """Add up gradients and loss (a tensor) over all processes, and undo the loss's scale."""
        sum_over_processes([*(p.grad for p in model.parameters()), loss], self.device)
        for optimizer in optimizers:
            self.scaler.unscale_(optimizer)

    def step(self, optimizers, norm):
        """Let the optimisers move, unless the gradient's norm says that float16 overflowed."""
        for optimizer in optimizers:
            if not self.scaler.is_enabled() or norm.isfinite():
                self.scaler.step(optimizer)
            optimizer.zero_grad()
        self.scaler.update()  # after a step left out, the next loss is scaled by less
