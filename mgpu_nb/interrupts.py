"""Steps that an interrupt must not break off halfway: a folder opened and locked, a file read on, threads made."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Generic, ParamSpec, TypeVar

__all__ = ["uninterrupted", "uninterruptible"]

P = ParamSpec("P")
T = TypeVar("T")

PATIENCE = 10.0  # seconds that an interrupt waits for a step, which is undone later if it takes longer


def uninterrupted(step: Callable[[], T], undo: Callable[[T], object] = lambda result: None) -> T:
    """Result of a step, which is done whole or undone: in a thread of its own, for an interrupt strikes the main one.

    Parameters
    ----------
    step
        What is done. It must not take locks that the main thread may hold.
    undo
        Called with the result if an interrupt comes before the caller has it; the interrupt goes on after that.

    Raises
    ------
    Exception
        What the step raised.
    """
    __tracebackhide__ = True
    work = _Work(step, undo)
    try:
        work.start()
        work.done.acquire()
        return work.result()
    except BaseException:
        work.give_up()
        raise


def uninterruptible(function: Callable[P, T]) -> Callable[P, T]:
    """Function each call of which is done whole: `uninterrupted` in the main thread, as it is in others."""

    @functools.wraps(function)
    def whole(*args: P.args, **kwargs: P.kwargs) -> T:
        __tracebackhide__ = True
        if threading.current_thread() is not threading.main_thread():
            return function(*args, **kwargs)
        return uninterrupted(lambda: function(*args, **kwargs))

    return whole


class _Work(threading.Thread, Generic[T]):
    """Does a step. The first to take the claim, it or the thread that gives up, leaves the rest to the other."""

    def __init__(self, step: Callable[[], T], undo: Callable[[T], object]) -> None:
        context = copy_context()  # the running cell is known by it
        super().__init__(target=lambda: context.run(self._do), name="mgpu_nb-step")
        self.done = threading.Lock()
        self.done.acquire()
        self._step, self._undo = step, undo
        self._claim = [True]
        self._made: list[T] = []
        self._error: BaseException | None = None

    def _do(self) -> None:
        try:
            made = self._step()
            self._made.append(made)
            if not self._take_claim():
                self._undo(made)
        except BaseException as error:
            self._error = error
            self._take_claim()  # there is nothing to undo
        finally:
            self.done.release()

    def _take_claim(self) -> bool:
        try:
            return self._claim.pop()  # of two threads one has it
        except IndexError:
            return False

    def result(self) -> T:
        """What the step made."""
        __tracebackhide__ = True
        if self._error is not None:
            raise self._error
        return self._made[0]

    def give_up(self) -> None:
        """Have it undone: by its thread if that is still at it, else by this one."""
        if self._take_claim():
            if self.ident is not None:
                self.done.acquire(timeout=PATIENCE)
        else:
            for made in self._made:
                self._undo(made)
