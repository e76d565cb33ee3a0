"""Which seats a job may take: how many, which are free, where its memory fits."""

from __future__ import annotations

from collections.abc import Sequence

from ..hardware import slots as device
from ..hardware.host import resident
from .job import Job
from .state import Post, Seat

__all__ = ["Admission"]


class Admission:
    """Chooses seats for jobs, and learns how much memory the jobs of a kind need.

    Parameters
    ----------
    seats
        All seats of the pool.
    fresh
        Whether every job gets a process of its own, so that no warm worker need wait at its seat.
    """

    def __init__(self, seats: Sequence[Seat], fresh: bool) -> None:
        self._seats = seats
        self._fresh = fresh
        self._peaks: dict[tuple[int, str], int] = {}
        self._groups: dict[str, list[Seat]] = {}
        for seat in seats:
            self._groups.setdefault(_group(seat), []).append(seat)
        self._shared = any(len(group) > 1 for group in self._groups.values())

    def learn(self, job: Job, peak: int | None) -> None:
        """Remember the peak memory, in bytes, of a job of this batch and kind."""
        if peak is not None and job.kind:
            key = (job.batch, job.kind)
            self._peaks[key] = max(peak, self._peaks.get(key, 0))

    def impossible(self, job: Job) -> str:
        """Say why a job can never start; empty where it can."""
        usable = [seat for seat in self._seats if not seat.retired]
        if job.devices > len(usable):
            retired = "; ".join(f"slot {s.slot.index}: {s.retired}" for s in self._seats if s.retired)
            return f"it takes {job.devices} slots, the pool has {len(usable)} in use" + (
                f" ({retired})" if retired else ""
            )
        if job.gang is not None and job.gang.apart:
            devices = len({seat.slot.uuid for seat in usable})
            if job.devices > devices:
                return f"it takes {job.devices} devices, the pool has {devices} in use"
        return ""

    def choose(self, job: Job) -> tuple[Seat, ...] | None:
        """Return seats for the job, none where memory does not allow it yet, None where it must wait for slots."""
        taken = self._reserved()
        if job.devices == 1 and not job.alone:
            seats = [
                s for s in self._seats if (s.free if self._fresh else s.ready) and _group(s) not in taken
            ]
            if not seats:
                return None
            if self._shared and len(seats) > 1:  # the device with the fewest tasks first
                seats.sort(key=lambda s: sum(other.taken_by is not None for other in self._groups[_group(s)]))
        else:
            seats = [s for s in self._seats if s.free and _group(s) not in taken]
            if job.alone:
                empty = [g for g in self._groups.values() if all(s.taken_by is None for s in g)]
                seats = [s for s in seats if any(s in group for group in empty)]
            if len(seats) < job.devices:
                return None
        if (need := self._need(job)) is not None:
            groups = {_group(s) for s in seats}
            roomy = {g for g in groups if self._fits(self._groups[g], need, stated=job.memory is not None)}
            seats = [s for s in seats if _group(s) in roomy]
        if len(seats) < job.devices:
            return ()
        # One seat of each device, then the others: a gang is spread.
        spread = list({seat.slot.uuid: seat for seat in reversed(seats)}.values())
        if job.gang is not None and job.gang.apart and len(spread) < job.devices:
            return None
        return tuple(sorted(seats, key=lambda seat: seat not in spread)[: job.devices])

    def _reserved(self) -> set[str]:
        """Return the groups that a job has for itself."""
        posts = [(s, s.taken_by) for s in self._seats]
        return {
            _group(s) for s, post in posts if post is not None and post.job is not None and post.job.alone
        }

    def _need(self, job: Job) -> int | None:
        """Bytes a job needs: what it states, else the largest peak of its kind where tasks share a device."""
        if job.memory is not None or not self._shared:
            return job.memory
        return self._peaks.get((job.batch, job.kind))

    def _fits(self, group: Sequence[Seat], need: int, stated: bool) -> bool:
        slot = group[0].slot
        others = dict.fromkeys(s.taken_by for s in group if s.taken_by is not None)
        if not stated and not others:
            return True  # only guessed, and waiting would free nothing
        # What our running tasks were promised and have not taken yet is not free.
        promised = {post: self._need(post.job) or 0 for post in others if post.job is not None}
        if need + sum(promised.values()) <= device.unused_memory(slot):
            return True  # whatever they have taken of it, which takes long to learn
        free = device.free_memory(slot)
        if free is None:
            return True  # cannot be known
        used = device.used_by(slot.uuid)
        for post, most in promised.items():
            free -= max(0, most - (used.get(post.worker.pid or 0) or _held(post)))
        return free >= need


def _held(post: Post) -> int:
    """Bytes a worker says it has, where the driver does not tell."""
    if post.seats[0].slot.kind == "cuda":
        return post.reported[1] if post.reported is not None else 0
    return resident(post.worker.pid) or 0


def _group(seat: Seat) -> str:
    """Seats of one group share memory: those of a GPU, or all virtual devices of the machine."""
    return seat.slot.uuid if seat.slot.kind == "cuda" else "cpu"
