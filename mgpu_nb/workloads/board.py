"""What ranks that share tasks tell each other, through the store at which they meet."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..distributed.environment import RankEnvironment

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

__all__ = ["MEETING", "Board", "RankError"]

BEAT = 1.0  # seconds between two signs of life
SILENCE = 60.0  # seconds without one after which a rank is gone
MEETING = 600.0  # seconds that a rank waits for another to come
LOOK = 0.05  # seconds between two looks at the store
PART = 4 * 2**20  # bytes that a key of the store holds at most; it takes 8 MiB


class RankError(RuntimeError):
    """Another rank has failed or is gone; the message names it."""


class Board:
    """What ranks tell each other through their store; a context that a rank is within as long as it works.

    The store is asked often instead of waited at: who waits has it for himself, and could give no sign of life.
    """

    def __init__(self, store: Store, ranks: RankEnvironment) -> None:
        self._store, self._ranks = store, ranks
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name="mgpu_nb-rank", daemon=True)
        now = time.monotonic()
        others = range(1, ranks.world) if ranks.rank == 0 else (0,)
        self._seen = dict.fromkeys(others, (-1, now))
        self._left: list[int] = []
        self._taken = 0  # of what was handed in

    def __enter__(self) -> Board:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and not isinstance(error, RankError):
            text = f"rank {self._ranks.rank} has failed: {type(error).__name__}: {error}"
            with contextlib.suppress(RankError):
                self._fail(text)
        with contextlib.suppress(RankError):
            self._leave(error is not None)
        self._over.set()
        self._thread.join()

    def announce(self, digest: str, left: Sequence[int]) -> None:
        """Tell the others which tasks are to be done, in this order."""
        self._left = list(left)
        self.tell("plan", json.dumps({"digest": digest, "left": self._left}))

    def numbers(self, digest: str) -> Iterator[int]:
        """Numbers of the tasks of this rank, each when the one before has ended."""
        if self._ranks.rank:
            told = json.loads(self.wait_for("plan"))
            if told["digest"] != digest:
                raise ValueError(
                    f"rank {self._ranks.rank} has other tasks than rank 0: give all ranks the same options and, on "
                    "each machine, the same files and the same version of mgpu_nb"
                )
            self._left = told["left"]
        while True:
            self.look()
            place = self._ask("add", "next", 1) - 1
            if place >= len(self._left):
                return
            yield self._left[place]

    def hand_in(self, number: int, handed: str) -> None:
        """Give rank 0 what came of a task."""
        data = handed.encode()
        parts = [data[at : at + PART] for at in range(0, len(data), PART)]
        for place, part in enumerate(parts):
            self.tell(f"part/{number}/{place}", part)
        turn = self._ask("add", "handed", 1) - 1
        self.tell(f"handed/{turn}", f"{number} {len(parts)}")

    def handed_in(self) -> Iterator[tuple[int, str]]:
        """Number of each task that another rank has handed in since it was asked last, and what came of it."""
        while self._is_there(f"handed/{self._taken}"):
            number, parts = map(int, self._ask("get", f"handed/{self._taken}").split())
            self._taken += 1
            keys = [f"part/{number}/{place}" for place in range(parts)]
            data = b"".join(self._ask("get", key) for key in keys)
            for key in keys:  # the store is memory
                self._ask("delete_key", key)
            yield number, data.decode()

    def tell(self, key: str, value: str | bytes) -> None:
        """Write a key for all to read."""
        self._ask("set", key, value)

    def wait_for(self, key: str) -> bytes:
        """Value of a key, as soon as it is there."""
        while not self._is_there(key):
            self.look()
            time.sleep(LOOK)
        found: bytes = self._ask("get", key)
        return found

    def wait_for_others(self) -> None:
        """Wait until all other ranks have left."""
        while not self._all_gone():
            self.look()
            time.sleep(LOOK)
        self.look()

    def look(self) -> None:
        """Raise a RankError if a rank has failed, or one that this one needs has given no sign of life."""
        if self._is_there("failed"):
            raise RankError(self._ask("get", "failed").decode())
        now = time.monotonic()
        for rank, (count, since) in self._seen.items():
            beats = self._ask("add", f"beat/{rank}", 0)
            if beats != count or self._is_there(f"gone/{rank}"):
                self._seen[rank] = beats, now
            elif now - since > (SILENCE if beats else MEETING):
                text = f"rank {rank} has not come within {MEETING:g} s"
                if beats:
                    text = f"rank {rank} has given no sign of life for {SILENCE:g} s: its process or machine is gone"
                self._fail(text)
                raise RankError(text)

    def _live(self) -> None:
        with contextlib.suppress(RankError):
            self._ask("add", f"beat/{self._ranks.rank}", 1)
            while not self._over.wait(BEAT):
                self._ask("add", f"beat/{self._ranks.rank}", 1)

    def _fail(self, text: str) -> None:
        self._ask("compare_set", "failed", "", text)

    def _leave(self, failed: bool) -> None:
        """Tell that this rank leaves; rank 0 may serve the store, and lets the others read there that it has failed."""
        self.tell(f"gone/{self._ranks.rank}", "")
        end = time.monotonic() + (2 * BEAT + 1 if failed and self._ranks.rank == 0 else 0)
        while not self._all_gone() and time.monotonic() < end:
            time.sleep(LOOK)

    def _all_gone(self) -> bool:
        return all(self._is_there(f"gone/{rank}") for rank in range(1, self._ranks.world))

    def _is_there(self, key: str) -> bool:
        return bool(self._ask("check", [key]))

    def _ask(self, what: str, key: str | list[str], *values: Any) -> Any:
        name: Any = [f"mgpu_nb/{each}" for each in key] if isinstance(key, list) else f"mgpu_nb/{key}"
        try:
            return getattr(self._store, what)(name, *values)
        except RuntimeError as error:  # what torch says of connections differs by version
            raise RankError(
                f"rank {self._ranks.rank} has lost the store at which the ranks meet: rank 0, or its torchrun, is gone "
                f"({str(error).splitlines()[0]})"
            ) from error
