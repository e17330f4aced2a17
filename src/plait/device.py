"""Where arithmetic is done: on the CPU by the kernels, or on CUDA, XPU or MPS devices by the same PyTorch code.

An input's rows go from the file into pinned memory and from there to the device as they are stored, are widened and merged
there, and come back rounded. Each thread has a stream of its own, so one thread's copies run while another's arithmetic does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from plait.errors import MergeError, PlaitError
from plait.lazy import Tensor, torch

KINDS = ("cuda", "xpu", "mps")
THREADS = 4  # for each device: some read and copy while another's arithmetic runs
#: entries of a piece on a device: enough to fill it, little next to its memory
PIECE = 1 << 24

_own = threading.local()


def devices(asked: str | None, several: bool = False) -> tuple[str, ...]:
    """The devices that `asked` means: `cpu`, `auto`, or a kind with or without a number (`cuda:1`); () for the CPU.

    `several`: every device of the kind, among which the steps of a plan are shared. Raises `PlaitError` for one that is not here.
    """
    asked = "cpu" if asked is None else asked.strip().lower()
    kind, _, number = asked.partition(":")
    if kind not in ("cpu", "auto", *KINDS) or (number and (not number.isdigit() or kind in ("cpu", "auto"))):
        raise PlaitError(
            f"there is no kind of device {asked!r}",
            wanted="cpu, auto, cuda, cuda:NUMBER, xpu or mps",
            found=asked,
            do="write one of them; the CPU is the default",
        )
    if asked == "cpu" and not several:
        return ()
    kinds = KINDS if kind in ("auto", "cpu") else (kind,)
    found = {k: n for k in kinds if (n := count(k))}
    if asked == "auto" and not several and not found:
        return ()
    if not found or (number and int(number) >= found[kind]):
        there = {k: n for k in KINDS if (n := count(k))}
        raise PlaitError(
            f"there is no {asked} device here" if kind in KINDS else "there is no GPU here",
            wanted=asked if kind in KINDS else "a GPU that PyTorch can use",
            found=", ".join(f"{n} {k}" for k, n in there.items()) or "only the CPU",
            do="leave the option out to compute on the CPU" + ("" if there else ", or install a PyTorch for your GPU"),
        )
    best = next(iter(found))
    if several and not number:
        return tuple(f"{best}:{i}" for i in range(found[best])) if best != "mps" else ("mps",)
    return (asked if number else best,)


def refuse_limit(places: tuple[str, ...], limit: int | None) -> None:
    """A limit of memory is kept by the CPU's kernels; what a GPU's driver holds here is not ours to promise."""
    if places and limit is not None:
        raise PlaitError(
            "--max-memory cannot be kept on a GPU",
            wanted="the CPU, or no limit",
            found=f"{', '.join(places)}, whose driver takes memory of its own",
            do="leave out one of the two",
        )


def prepare(places: tuple[str, ...]) -> None:
    """Have PyTorch load its linear algebra, which it does when first asked, and cannot do when several threads ask at once."""
    for place in places:
        if not place.startswith("cpu"):
            torch.linalg.inv(torch.ones((1, 1), device=place))


def full(places: tuple[str, ...], threads: int) -> PlaitError:
    """What to say when a device has no more memory."""
    return MergeError(
        f"the memory of {', '.join(places)} is too small",
        wanted=f"room for what {threads} threads work on at once",
        found="a full device",
        do="pass --num-threads with a smaller number, or leave --device out: the CPU needs no such memory",
    )


def count(kind: str) -> int:
    """How many devices of a kind PyTorch can use."""
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    own = getattr(torch, kind, None)
    return int(own.device_count()) if own is not None and own.is_available() else 0


def to_device(x: Tensor, device: str) -> Tensor:
    """The same numbers there; through pinned memory, without waiting, where there is such a thing."""
    return _pinned(x, device).to(device, non_blocking=True)


def to_cpu(x: Tensor) -> Tensor:
    """The same numbers here, whole; waits for this thread's work on the device."""
    return x.cpu()


def _pinned(x: Tensor, device: str) -> Tensor:
    """A copy that the device can fetch by itself. PyTorch keeps such memory, and lends it anew when the device has it."""
    return x if device.startswith(("cpu", "mps")) else x.pin_memory()


@contextmanager
def stream(device: str) -> Iterator[None]:
    """This thread's own queue of work on the device."""
    kind = device.partition(":")[0]
    if kind not in ("cuda", "xpu"):
        yield
        return
    own: Any = getattr(torch, kind)
    held: dict[str, Any] = _own.__dict__.setdefault("streams", {})
    if device not in held:
        held[device] = own.Stream(device=torch.device(device if ":" in device else f"{device}:0"))
    with own.stream(held[device]):
        yield


def shared(places: tuple[str, ...]) -> Callable[[], str | None]:
    """Gives each thread that asks a device of its own, in turn; None without devices."""
    lock, given, mine = threading.Lock(), [0], threading.local()

    def place() -> str | None:
        if places and not hasattr(mine, "device"):
            with lock:
                mine.device = places[given[0] % len(places)]
                given[0] += 1
        return mine.device if places else None

    return place
