"""What this machine computes with, by what its hardware can do: device, precision, threads.

    device    `auto`: CUDA where there is any, else the CPU
    dtype     `auto`: bfloat16 where the device multiplies it in hardware (CUDA from compute capability 8.0; CPUs with
              AMX, AVX512-BF16 or Arm's BF16), else float32
    threads   OMP_NUM_THREADS, else the physical cores that the process may use (affinity and cgroup quota), divided
              among the processes of one run
    waiting   a thread that is done with its part of an operation waits awake for some 0.1 ms and then sleeps, unless
              OpenMP's own variables say how it waits
    memory    a process that computes keeps the memory that it frees, unless the C library's own variables say what
              it does

Decided by capability and never by timing, so that a machine always answers the same. The variables with which the
libraries hide instructions from themselves hide them here as well: ONEDNN_MAX_CPU_ISA and ATEN_CPU_CAPABILITY.
Where bfloat16 has no instructions its products are emulated, a hundred times slower than float32 ones.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal, cast

from gpo_data.errors import UsageError

Dtype = Literal["float32", "bfloat16", "float16"]
# Values of ONEDNN_MAX_CPU_ISA that leave it bfloat16 products (oneDNN's developer guide, CPU dispatcher control); the
# longer ones begin with one of these.
WITH_BFLOAT16 = ("ALL", "DEFAULT", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX", "AVX10", "AVX2_VNNI_2")
SLOW = 1.5  # times float32's seconds: worth a word
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def device_of(setting: str, key: str = "sampler.device") -> str:
    """The device of a setting. Raises UsageError where it is not there."""
    import torch

    if setting == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = setting.partition(":")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" and not index:
        return setting
    if kind == "cuda" and (index or "0").isdecimal() and int(index or 0) < there:
        return setting
    if setting == "mps" and torch.backends.mps.is_available():
        return setting
    present = ["cpu", *(f"cuda:{i}" for i in range(there)), *(["mps"] if torch.backends.mps.is_available() else [])]
    raise UsageError(f"{key}: {setting}: not on this machine; there is {', '.join(present)}, or auto")


def torch_device(setting: str) -> Any:
    """The same as a torch.device, and which card of several: a thread of its own begins at the first, whatever card its
    process computes on. Raises UsageError."""
    import torch

    device = torch.device(device_of(setting))
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def bfloat16_units(device: str) -> str:
    """What multiplies bfloat16 in hardware on the device, by name; '' where nothing does."""
    import torch

    if device.startswith("cuda"):
        with torch.cuda.device(device):
            return torch.cuda.get_device_name() if torch.cuda.is_bf16_supported(including_emulation=False) else ""
    if device != "cpu":
        return ""  # mps: not tried on one, and float32 is right everywhere
    can = torch.cpu.get_capabilities()
    hidden = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "ALL")).upper()
    aten = os.environ.get("ATEN_CPU_CAPABILITY", "").lower()
    if not hidden.startswith(WITH_BFLOAT16) or aten in ("default", "avx2"):
        return ""
    names = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "Arm BF16"}
    return ", ".join(name for key, name in names.items() if can.get(key))


def dtype_for(setting: str, device: str, key: str = "sampler.dtype") -> Dtype:
    """The precision of a setting, `auto` or a name, on a device. Raises UsageError if a GPU does not have it."""
    units = bfloat16_units(device)
    if setting == "auto":
        return "bfloat16" if units else "float32"
    if setting == "bfloat16" and device.startswith("cuda") and not units:
        raise UsageError(f"{key}: bfloat16: this GPU does not multiply it; it has float32 and float16, or take auto")
    return cast(Dtype, setting)


def reason_for(dtype: str, device: str) -> str:
    """Why `auto` takes it, in a few words."""
    units = bfloat16_units(device)
    if not units:
        return "no bfloat16 instructions"
    return units if dtype == "bfloat16" else f"it has bfloat16: {units}"


def times_slower(dtype: str, device: str) -> float:
    """Seconds of a product in `dtype` over those in float32, measured; 1 on a GPU, where the hardware is for it."""
    if device != "cpu" or dtype == "float32":
        return 1.0
    import torch

    def seconds(kind: torch.dtype) -> float:
        a, b = torch.ones(1024, 192, dtype=kind), torch.ones(192, 192, dtype=kind)
        taken = []
        for _ in range(4):
            started = time.perf_counter()
            a @ b
            taken.append(time.perf_counter() - started)
        return min(taken)

    return seconds(getattr(torch, dtype)) / seconds(torch.float32)


def warning_of(key: str, dtype: str, device: str, why: str = "") -> str | None:
    """A line for a precision in which this machine is slow, or None. `why`: where the precision comes from."""
    times = times_slower(dtype, device) if dtype_for("auto", device) != dtype else 1.0
    if times < SLOW:
        return None
    return (
        f"warning: {key}: {dtype}{why} has no instructions on this processor: a product takes {times:.0f} times "
        f"as long as in float32, which `auto` takes here"
    )


def cores() -> int:
    """Physical cores that this process may use: affinity and cgroup quota counted."""
    import loky

    return int(loky.cpu_count(only_physical_cores=True))


def threads(processes: int = 1) -> int:
    """Threads of one of `processes` that compute on this machine at once; OMP_NUM_THREADS is the user's own word."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(asked) if asked.isdecimal() and int(asked) else max(1, cores() // processes)


def take_threads(processes: int = 1) -> int:
    """Have torch compute with `threads(processes)`, in memory that the process keeps; their number."""
    import torch

    collect_as_before()
    keep_freed_memory()
    number = threads(processes)
    torch.set_num_threads(number)
    if processes > 1:  # those that this one starts, and Lightning, which would count hyper-threads as cores
        os.environ.setdefault("OMP_NUM_THREADS", str(number))
    return number


def wait_briefly() -> None:
    """Have GNU's OpenMP, which torch computes with on Linux, give a core away soon; before torch is loaded.

    The threads of an operation end together. libgomp's wait awake for some milliseconds, and where other programs are
    at work too, the one that all wait for has no core meanwhile.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


_before: list[tuple[int, int, int]] = []


def collect_rarely() -> None:
    """Have Python look for garbage after 10,000 new objects instead of 700, in a command that has yet to import.

    Of the half a million objects of torch, diffusers and PaddleOCR none is garbage, and to go through them again and
    again was 2.4 of the 13.8 s that `gpo-data shards` took to draw four pictures on an AMD EPYC (Zen 3).
    """
    _before.append(gc.get_threshold())
    gc.set_threshold(10_000)


def collect_as_before() -> None:
    """With a model garbage can be large: a tensor is one object, of whatever size."""
    if _before:
        gc.set_threshold(*_before.pop())


def keep_freed_memory() -> None:
    """Have glibc use freed blocks of up to 32 MiB again, in the place of giving them back to the kernel.

    A forward pass on the CPU asks for the same tensors of a few MiB again and again. Given back, each is new pages,
    that the kernel clears one by one at the first touch. 32 MiB is as far as glibc itself goes (`mallopt(3)`), by and
    by; what is larger, such as weights, goes back as ever.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # musl has none
        mallopt(M_MMAP_THRESHOLD, 32 << 20)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def same_threads() -> Iterator[None]:
    """Around calls of libraries that change torch's number of threads."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe(device: str, dtype: str) -> str:
    """One line: `cpu, 2 threads, bfloat16 (AMX)`."""
    import torch

    where: list[Any] = [device]
    if device == "cpu":
        where.append(f"{torch.get_num_threads()} threads")
    where.append(f"{dtype} ({reason_for(dtype, device)})")
    if torch.backends.mps.is_available() and device == "cpu":
        where.append("Apple's GPU is left alone, not being tested; sampler.device: mps takes it")
    return ", ".join(where)


def peak_memory(device: str) -> int:
    """Bytes that this process has held at most until now: on the GPU if it computes on one, else in all."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    import resource  # of Unix alone

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def pool(most: int) -> Iterator[ThreadPoolExecutor]:
    """Threads, at most so many; where one fails, or the caller does, jobs that have not begun never do."""
    with ThreadPoolExecutor(max(1, most)) as executor:
        try:
            yield executor
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
