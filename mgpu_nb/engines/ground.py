"""What every task of a warm worker finds: the state that `setup` left, set back after each task."""

from __future__ import annotations

import contextlib
import contextvars
import decimal
import faulthandler
import io
import locale
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from ..hardware.slots import with_defaults
from .environment import Environment
from .logs import DEFAULT, LoggingState, adopt_logging
from .switches import Switches

__all__ = ["Ground", "Stream", "dump_on_sigterm", "ignore_sigint"]


def ignore_sigint() -> None:
    """Have SIGINT do nothing here: Jupyter interrupts a whole group, and the parent process decides.

    By a handler: programs that a task starts would inherit that it is ignored, and forks of this process are told.
    """
    signal.signal(signal.SIGINT, _nothing)
    signal.siginterrupt(signal.SIGINT, False)
    os.register_at_fork(after_in_child=_heed_sigint)


def _nothing(signum: int, frame: object) -> None:
    pass


def _heed_sigint() -> None:
    with contextlib.suppress(ValueError):
        if signal.getsignal(signal.SIGINT) is _nothing:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def dump_on_sigterm() -> None:
    """Have SIGTERM end this process, after a stack of each thread: where a timeout struck."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.enable(sys.stderr)
    faulthandler.register(signal.SIGTERM, sys.stderr, all_threads=True, chain=True)


class Stream(io.TextIOWrapper):
    """stdout or stderr of a worker, by lines: a whole line is out before a crash can take it."""

    def __init__(self, fd: int) -> None:
        file = open(fd, "wb", closefd=False)  # noqa: SIM115
        super().__init__(file, "utf-8", "backslashreplace", line_buffering=True)


class _SortedStream(Stream):
    """The same while there are threads that an earlier task has left: what they write is not the present task's."""

    threads: Mapping[threading.Thread, Path | None] = {}

    def write(self, text: str, /) -> int:
        """Write; what a thread of an earlier task writes goes to that task's log."""
        thread = threading.current_thread()
        if thread not in self.threads:
            return super().write(text)
        if (log := self.threads[thread]) is not None:
            with (
                contextlib.suppress(OSError),
                log.open("a", encoding="utf-8", errors="backslashreplace") as file,
            ):
                file.write(text)
        return len(text)


class Ground:
    """The state of a worker that each task finds.

    Parameters
    ----------
    pins
        Environment variables that no task's environment replaces.
    log
        Descriptor of the worker's log.

    Attributes
    ----------
    unfit
        Why this process cannot be set back, so that it must run no further task; empty if it can.
    """

    def __init__(self, pins: Mapping[str, str], log: int) -> None:
        self.unfit = ""
        self._pins, self._log = pins, log
        self._own: tuple[Any, ...] = (sys.stdout, sys.stderr)
        # What setup itself has changed stays, whatever environment a task brings.
        self._set: dict[str, str] = {}
        self._unset: set[str] = set()
        self._folder = ""
        self._path_before: list[str] = []
        self._path_after: list[str] = []
        self._left: dict[threading.Thread, Path | None] = {}
        self._logs = DEFAULT
        self._logging: LoggingState | None = None

    # The environment of the parent process.

    def adopt(self, environment: Environment) -> None:
        """Take over variables (but those that pin this worker), working directory, import path and logging."""
        self._environment = environment
        wanted = {**with_defaults(environment.variables), **self._pins, **self._set}
        _set_variables({name: value for name, value in wanted.items() if name not in self._unset})
        with contextlib.suppress(OSError):  # a folder that is gone: stay where we are
            os.chdir(self._folder or environment.folder)
        sys.path[:] = [*self._path_before, *environment.path, *self._path_after]
        self._note_environment()
        if environment.logs != self._logs:
            adopt_logging(environment.logs, self._logs)
            self._logs = environment.logs
            if self._logging is not None:
                self._logging = LoggingState()

    def _note_environment(self) -> None:
        self._variables = dict(os.environ)
        self._raw = _raw_variables().copy()
        self._cwd, self._path = _cwd(), list(sys.path)

    def _restore_environment(self) -> None:
        if _raw_variables() != self._raw:
            _set_variables(self._variables)
        if _cwd() != self._cwd:
            with contextlib.suppress(OSError):
                os.chdir(self._cwd or self._folder or self._environment.folder)
        if sys.path != self._path:
            sys.path[:] = self._path

    def _keep_own(self) -> None:
        """Note how the environment differs from the one that was adopted."""
        now = dict(os.environ)
        self._set |= {name: value for name, value in now.items() if self._variables.get(name) != value}
        self._unset = (self._unset | (self._variables.keys() - now.keys())) - now.keys()
        self._set = {name: value for name, value in self._set.items() if name in now}
        if (cwd := _cwd()) != self._cwd and cwd:
            self._folder = cwd
        if sys.path != self._path:
            known = set(self._path)
            first = next((n for n, entry in enumerate(sys.path) if entry in known), len(sys.path))
            new = [(n, entry) for n, entry in enumerate(sys.path) if entry not in known]
            self._path_before = [*(entry for n, entry in new if n < first), *self._path_before]
            self._path_after += [entry for n, entry in new if n >= first]
        self._note_environment()

    # The ground.

    def mark(self) -> None:
        """Take the present state for what each task finds: after setup, and after imports that a call brings."""
        self._keep_own()
        self._modules = len(sys.modules)
        self._switches = Switches()
        self._streams: tuple[Any, ...] = (sys.stdin, sys.stdout, sys.stderr)
        self._umask = os.umask(0o022)
        os.umask(self._umask)
        self._depth = sys.getrecursionlimit()
        self._timer = signal.getitimer(signal.ITIMER_REAL)[0] > 0
        self._filters, self._showwarning = list(warnings.filters), warnings.showwarning
        self._locale = locale.setlocale(locale.LC_ALL)
        self._logging = LoggingState()
        self._context = contextvars.copy_context()
        own = any(variable.name == "decimal_context" for variable in self._context)
        self._decimal = decimal.getcontext().copy() if own else None
        self._threads = threading.active_count()
        self._known = set(threading.enumerate()) - self._left.keys()

    def imported(self) -> None:
        """Note that a call was unpickled: what its imports have set up, no later task would set up again."""
        if len(sys.modules) != self._modules:
            self.mark()

    def call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function in context variables of its own: those of decimal, numpy's errors, a user's."""
        context = self._context.copy()
        if self._decimal is not None:  # a context of decimal is changed in place
            context.run(decimal.setcontext, self._decimal.copy())
        return context.run(fn, *args, **kwargs)

    def take_log(self) -> None:
        """Have descriptors 1 and 2 be the log, whatever an earlier task has made of them."""
        os.dup2(self._log, 1)
        os.dup2(self._log, 2)

    def quiet(self) -> None:
        """End the task's timers and handlers of signals: they must not strike the worker, nor the next task."""
        if not self._timer:
            signal.alarm(0)
        if sys.getrecursionlimit() < self._depth:  # what follows is ours and needs some
            sys.setrecursionlimit(self._depth)
        faulthandler.cancel_dump_traceback_later()
        if signal.SIGTERM in self._switches.restore_signals() or not faulthandler.is_enabled():
            dump_on_sigterm()

    def end_output(self, folder: Path | None, stem: str) -> None:
        """Flush what the task has written; what its threads write from now on goes to its log in a run's folder.

        Without a folder here it is lost: the parent process would take it for the next task's.
        """
        _flush()
        ours = self._streams
        replaced = sys.stdout is not ours[1] or sys.stderr is not ours[2] or sys.stdin is not ours[0]
        if replaced or _closed(ours[1]) or _closed(ours[2]):
            self._own = tuple(
                Stream(fd) if own.closed else own for fd, own in zip((1, 2), self._own, strict=True)
            )
            self._streams = (
                self._streams[0],
                *(
                    own if _closed(was) else was
                    for own, was in zip(self._own, self._streams[1:], strict=True)
                ),
            )
            sys.stdin, sys.stdout, sys.stderr = self._streams
            _flush()
        if self._left or threading.active_count() != self._threads:
            self._tell_threads_apart(None if folder is None else Path(folder, "logs", f"{stem}.log"))

    def _tell_threads_apart(self, log: Path | None) -> None:
        """Note which threads the task has left, but those of an executor: they may work for any later task."""
        alive = threading.enumerate()
        pooled = getattr(sys.modules.get("concurrent.futures.thread"), "_threads_queues", ())
        known = self._known
        new = [t for t in alive if t not in known and t not in pooled and not t.name.startswith("mgpu_nb-")]
        self._left = {thread: self._left.get(thread, log) for thread in new}
        self._threads = len(alive)
        for stream in self._own:
            stream.__class__ = _SortedStream if new else Stream
            stream.threads = self._left

    def restore(self) -> None:
        """Set back all else that the task has changed. It takes microseconds where that is nothing."""
        try:
            self._switches.restore()
            self._restore_environment()
            if self._logging is not None:
                self._logging.restore()
            os.umask(self._umask)
            if warnings.filters != self._filters or warnings.showwarning is not self._showwarning:
                warnings.resetwarnings()
                cast(list[Any], warnings.filters).extend(self._filters)
                warnings.showwarning = self._showwarning
            if locale.setlocale(locale.LC_ALL) != self._locale:
                locale.setlocale(locale.LC_ALL, self._locale)
        except Exception as error:
            self.unfit = f"{type(error).__name__}: {error}"


def _flush() -> None:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except Exception:  # a closed one, or whatever a task has put there
        with contextlib.suppress(Exception):
            sys.stderr.flush()


def _closed(stream: Any) -> bool:
    return bool(getattr(stream, "closed", False))


def _cwd() -> str:
    """Working directory; empty if it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def _raw_variables() -> dict[Any, Any]:
    """The dictionary behind ``os.environ``, which compares in a microsecond; os.environ itself decodes every entry."""
    return getattr(os.environ, "_data", None) or dict(os.environ)


def _set_variables(wanted: Mapping[str, str]) -> None:
    if wanted != dict(os.environ):
        zone = os.environ.get("TZ")
        for name in os.environ.keys() - wanted.keys():
            del os.environ[name]
        os.environ.update(wanted.items() - os.environ.items())
        if wanted.get("TZ") != zone:
            time.tzset()
