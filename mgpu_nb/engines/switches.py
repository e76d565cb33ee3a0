"""Settings of the interpreter and of torch that a task can change for the next: read at once, set back one by one.

They are read after every task, so a getter takes some fifty nanoseconds and makes no system call. A private name of
torch is taken where the public one takes microseconds, and left out where a version does not have it.
"""

from __future__ import annotations

import asyncio.events
import gc
import importlib
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["SIGNALS", "Switches"]

Switch = tuple[Callable[[], Any], Callable[[Any], Any]]

SIGNALS = tuple(
    getattr(signal, name)
    for name in (
        "SIGINT", "SIGTERM", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCHLD",
        "SIGPIPE", "SIGABRT", "SIGCONT", "SIGWINCH",
    )
    if hasattr(signal, name)
)  # fmt: skip
"""Signals whose handlers are looked after."""

# `signal.getsignal` makes an entry of an enumeration of what this returns, in ten times as long.
_getsignal: Callable[[int], Any] = importlib.import_module("_signal").getsignal

_TIMERS = {
    signal.SIGALRM: signal.ITIMER_REAL,
    signal.SIGVTALRM: signal.ITIMER_VIRTUAL,
    signal.SIGPROF: signal.ITIMER_PROF,
}


class Switches:
    """Values of all settings at one moment, to which they can be set back."""

    def __init__(self) -> None:
        switches = [*_of_python(), *_of_torch()]
        self._getters = [get for get, _ in switches]
        self._setters = [put for _, put in switches]
        self._values = [get() for get in self._getters]
        self._handlers = [_getsignal(number) for number in SIGNALS]

    def restore(self) -> None:
        """Set back what has changed.

        Raises
        ------
        RuntimeError
            If something cannot be set back.
        """
        now = [get() for get in self._getters]
        if now != self._values:
            for was, value, put in zip(now, self._values, self._setters, strict=True):
                if was != value:
                    put(value)

    def restore_signals(self) -> list[int]:
        """Set the handlers of signals back; the numbers of those that had changed."""
        handlers = [_getsignal(number) for number in SIGNALS]
        if handlers == self._handlers:
            return []
        changed = []
        for number, was, handler in zip(SIGNALS, handlers, self._handlers, strict=True):
            if was != handler and handler is not None:
                if number in _TIMERS:  # first: by default its signal ends the process
                    signal.setitimer(_TIMERS[number], 0)
                signal.signal(number, handler)
                changed.append(number)
        return changed


def _of_python() -> Iterator[Switch]:
    yield lambda: sys.argv, lambda value: setattr(sys, "argv", value)
    yield gc.isenabled, lambda on: gc.enable() if on else gc.disable()
    yield sys.getrecursionlimit, sys.setrecursionlimit
    yield sys.getswitchinterval, sys.setswitchinterval
    yield sys.gettrace, sys.settrace
    yield sys.getprofile, sys.setprofile
    yield lambda: sys.excepthook, lambda hook: setattr(sys, "excepthook", hook)
    yield lambda: threading.excepthook, lambda hook: setattr(threading, "excepthook", hook)
    # A second task that sets the method would be told that it has been set.
    yield (
        lambda: multiprocessing.get_start_method(allow_none=True),
        lambda method: multiprocessing.set_start_method(method, force=True),
    )
    # Where a task has closed its loop, the next would be given the closed one. The public function warns from 3.14 on.
    events = vars(asyncio.events)
    if "_event_loop_policy" in events:
        yield lambda: events["_event_loop_policy"], lambda policy: events.update(_event_loop_policy=policy)
    numpy = sys.modules.get("numpy")
    if numpy is not None and numpy.__version__ < "2":  # later a context variable, see `Ground.call`
        yield numpy.geterr, lambda how: numpy.seterr(**how)


def _of_torch() -> Iterator[Switch]:
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return
    core = torch._C
    yield torch.get_default_dtype, torch.set_default_dtype
    yield torch.is_inference_mode_enabled, _no_inference
    yield torch.is_grad_enabled, torch.set_grad_enabled
    yield torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled
    yield torch.get_num_threads, torch.set_num_threads
    yield torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly
    yield torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode
    yield torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    for name in (
        "cudnn_benchmark",
        "cudnn_deterministic",
        "cudnn_enabled",
        "cudnn_allow_tf32",
        "cublas_allow_tf32",
    ):
        if hasattr(core, f"_get_{name}"):
            yield getattr(core, f"_get_{name}"), getattr(core, f"_set_{name}")
    if hasattr(core, "_is_any_autocast_enabled"):
        yield core._is_any_autocast_enabled, _Autocast(torch)
    if torch.distributed.is_available():
        yield torch.distributed.is_initialized, _no_group
    yield (
        core._len_torch_dispatch_stack,
        _Modes(core._len_torch_dispatch_stack, "torch.utils._python_dispatch"),
    )
    yield lambda: (core._len_torch_function_stack(), _current_device()), _DefaultDevice(torch)


def _current_device() -> Any:
    """Device of ``torch.set_default_device``; None without one. Its module is imported at its first use."""
    return getattr(sys.modules.get("torch.utils._device"), "CURRENT_DEVICE", None)


def _no_inference(_: bool) -> None:
    # A guard of ours would set it back, and that of the task, once it is garbage, what was before it, at any time.
    raise RuntimeError("a task has left torch.inference_mode on, or has ended that of setup")


def _no_group(_: bool) -> None:
    raise RuntimeError("a task has left a process group of torch.distributed")  # to leave it may hang


class _Autocast:
    """Sets autocast back where a task has left its ``with``."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._on = {device: self._enabled(device) for device in ("cpu", "cuda")}

    def _enabled(self, device: str) -> tuple[bool, Any]:
        return self._torch.is_autocast_enabled(device), self._torch.get_autocast_dtype(device)

    def __call__(self, _: bool) -> None:
        torch = self._torch
        for device, (on, dtype) in self._on.items():
            torch.set_autocast_enabled(device, on)
            torch.set_autocast_dtype(device, dtype)
        # Or what later ones cast would never be forgotten.
        while torch.autocast_decrement_nesting() > 0:
            pass
        while torch.autocast_increment_nesting() < 0:
            pass
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()


class _Modes:
    """Leaves the modes of a stack that a task has entered and not left."""

    def __init__(self, length: Callable[[], int], module: str) -> None:
        self._length, self._module = length, module

    def __call__(self, length: int) -> None:
        while self._length() > length:
            sys.modules[self._module]._pop_mode()
        if self._length() < length:
            raise RuntimeError("a task has left a mode of torch that setup had entered")


class _DefaultDevice:
    """Sets the device of ``torch.set_default_device`` back, and leaves the function modes that a task has entered."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._modes = _Modes(torch._C._len_torch_function_stack, "torch.overrides")

    def __call__(self, wanted: tuple[int, Any]) -> None:
        length, device = wanted
        if length > (device is not None):
            raise RuntimeError("a task has changed the modes of torch that setup had entered")
        self._modes(0)
        if (module := sys.modules.get("torch.utils._device")) is not None:
            vars(module)["CURRENT_DEVICE"] = None
        self._torch._GLOBAL_DEVICE_CONTEXT.device_context = None
        if device is not None:
            self._torch.set_default_device(device)
