"""The six methods: what is done with more network evaluations per sample.

States are [S, C, L, 3] in nm: S samples, C candidates of each, all through the model in one call. A
sample's noise depends on the run's seed and the sample's number alone. The plain sample, the one that
``standard`` makes, is
a candidate of every method and goes through model and score in a batch of its own, the batch of ``standard``:
so every search is at least as good as ``standard``, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...tasks import derive_seed
from .budget import branch_steps, noise_rounds
from .config import Config
from .flow import Flow, centre
from .frames import normal_to_rotations, with_rotations
from .scores import Scorer

__all__ = ["Best", "Noise", "Search"]

Move = Callable[[Tensor, int, "Stream"], Tensor]
_AT_ONCE = 16  # starts of a sample


class Stream:
    """Generators of S x C candidates, one each, so that no candidate's draws depend on the others'."""

    def __init__(self, seeds: list[int], lead: tuple[int, int], device: str) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.lead, self.device = lead, device

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers [S, C, *shape], on the CPU: the same for every device."""
        if not self.generators:
            return torch.empty(*self.lead, *shape, device=self.device)
        draws = torch.stack([torch.randn(shape, generator=generator) for generator in self.generators])
        return draws.view(*self.lead, *shape).to(self.device)


class Noise:
    """Where the random numbers of S samples come from."""

    def __init__(self, seed: int, num_samples: int, device: str) -> None:
        self.seeds = [derive_seed(seed, sample) for sample in range(num_samples)]
        self.device = device

    def starts(self, count: int, length: int, frames: bool = False) -> Tensor:
        """Noise [S, count, L, 3] of zero centre of mass; eight starts begin with the first four.

        With frames it is [S, count, L, 12], the rotations uniform.
        """
        seeds = [derive_seed(seed, start) for seed in self.seeds for start in range(count)]
        stream = Stream(seeds, (len(self.seeds), count), self.device)
        x = centre(stream.normal(length, 3))
        return with_rotations(x, normal_to_rotations(stream.normal(length, 4))) if frames else x

    def round(self, number: int, count: int) -> Stream:
        """Stream of round `number` (from 0) for `count` children of each sample."""
        rounds = [derive_seed(seed, -1 - number) for seed in self.seeds]
        return Stream(
            [derive_seed(seed, child) for seed in rounds for child in range(count)],
            (len(rounds), count),
            self.device,
        )


@dataclass
class Best:
    """The best completed sample seen so far, of each of S samples.

    Attributes
    ----------
    x
        [S, L, 3], nm.
    score
        [S].
    """

    x: Tensor
    score: Tensor

    def offer(self, x: Tensor, score: Tensor, gain: Callable[[Tensor], Tensor]) -> None:
        """Take of candidates [S, C, L, 3] with scores [S, C] those that are better."""
        top, index = gain(score).max(dim=1)
        better = top > gain(self.score)
        each = torch.arange(len(index), device=index.device)
        self.x = torch.where(better[:, None, None], x[each, index], self.x)
        self.score = torch.where(better, score[each, index], self.score)


class Search:
    """Runs the methods on one flow.

    Parameters
    ----------
    flow
        The model and its steps; counts the evaluations.
    scorer
        Scores completed samples.
    config
        The options: noise_scale, lambda_div, branching, num_keep, seed, number and length of the samples.
    device
        torch's name of the device.
    """

    def __init__(self, flow: Flow, scorer: Scorer, config: Config, device: str) -> None:
        self.flow, self.scorer, self.config = flow, scorer, config
        self.noise = Noise(config.seed, config.num_samples, device)
        self.best: Best | None = None
        self.seen: list[Tensor] = []

    def run(self, method: str, num_branches: int) -> Best:
        """Make the samples of one experiment and return the best completed one of each.

        Parameters
        ----------
        method
            One of `METHODS`.
        num_branches
            Children per kept state; of best_of_n the number of starts.
        """
        self.best, self.seen = None, []
        with torch.no_grad():
            for x, score in getattr(self, f"_{method}")(num_branches):
                if self.best is None:
                    self.best = Best(x[:, 0], score[:, 0])
                self.best.offer(x, score, self.scorer.gain)
                self.seen.append(score)
        if self.best is None or not bool(torch.isfinite(self.best.x).all()):
            raise ValueError(
                "the model gave samples that are not finite; look at its weights "
                "and at the scale of its output (nm)"
            )
        return self.best

    def best_so_far(self) -> Tensor:
        """Best score [S, N] of the last run among the first 1 ... N completed samples."""
        scores = torch.cat(self.seen, dim=1)
        return scores.gather(1, self.scorer.gain(scores).cummax(dim=1).indices)

    def _standard(self, num_branches: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield self._completed(self._starts(1), 0)

    def _best_of_n(self, num_branches: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Sample more often, so many starts at once that they need no more memory than the other methods."""
        first, *others = self._starts(num_branches).split([1, *_parts(num_branches - 1)], dim=1)
        for starts in (first, *others):
            yield self._completed(starts, 0)

    def _sde_path_exploration(self, num_branches: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self._explore(self._starts(1), num_branches, self._noisy)

    def _divergence_free_ode(self, num_branches: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self._explore(self._starts(1), num_branches, self._divergence_free)

    def _random_search_divfree(self, num_branches: int) -> Iterator[tuple[Tensor, Tensor]]:
        starts = self._starts(num_branches)
        ends, scores = self._completed_apart(starts, 0)
        yield ends, scores
        yield from self._explore(
            _take_best(starts, self.scorer.gain(scores), 1), num_branches, self._divergence_free
        )

    def _explore(self, kept: Tensor, num_branches: int, move: Move) -> Iterator[tuple[Tensor, Tensor]]:
        """Branch along the path: children of the kept states are completed, and the best go on."""
        branches = branch_steps(self.config)
        for step in range(self.config.steps):
            if step not in branches:
                kept = self.flow.ode_step(kept, step)
                continue
            number = branches.index(step)
            plain = self.flow.ode_step(kept, step)
            parents = kept.repeat_interleave(num_branches - 1, dim=1)
            children = torch.cat([plain, self._moved(parents, step, number, move)], dim=1)
            finish = self._completed_apart if number == 0 else self._completed
            ends, scores = finish(children, step + 1)
            yield ends, scores
            kept = _take_best(children, self.scorer.gain(scores), self.config.num_keep)

    def _noise_search(self, num_branches: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Complete noisily, in rounds: each starts from states that the best of the last one went through."""
        rounds, kept = noise_rounds(self.config.steps), self._starts(1)
        for number, begin in enumerate(rounds):
            restart = rounds[number + 1] if number + 1 < len(rounds) else None
            parents = kept.repeat_interleave(num_branches, dim=1)
            stream = self.noise.round(number, parents.shape[1])
            parts = [self._walk(parents, begin, restart, stream)]
            if number == 0:
                parts.insert(0, self._walk(kept, begin, restart, None))
            scored = [self.scorer(end) for end, _ in parts]
            ends, states = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
            scores = torch.cat(scored, dim=1)
            yield ends, scores
            kept = _take_best(states, self.scorer.gain(scores), self.config.num_keep)

    def _walk(
        self, x: Tensor, begin: int, restart: int | None, stream: Stream | None
    ) -> tuple[Tensor, Tensor]:
        """Walk from step `begin`, noisily with a stream, to the end; also give the state before `restart`."""
        state = x
        for step in range(begin, self.config.steps):
            if step == restart:
                state = x
            x = self.flow.ode_step(x, step) if stream is None else self._noisy(x, step, stream)
        return x, state

    def _noisy(self, x: Tensor, step: int, stream: Stream) -> Tensor:
        draw = centre(stream.normal(x.shape[-2], 3))
        return self.flow.sde_step(x, step, draw, self.config.noise_scale)

    def _divergence_free(self, x: Tensor, step: int, stream: Stream) -> Tensor:
        length, kind = x.shape[-2], self.config.divergence_free
        draw = stream.normal(length, length if kind == "antisymmetric" else 3)
        return self.flow.divergence_free_step(x, step, draw, self.config.lambda_div, kind)

    def _moved(self, x: Tensor, step: int, number: int, move: Move) -> Tensor:
        return move(x, step, self.noise.round(number, x.shape[1])) if x.numel() else x

    def _starts(self, count: int) -> Tensor:
        return self.noise.starts(count, self.config.sample_length, self.flow.frames)

    def _completed(self, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
        ends = self.flow.complete(x, step)
        return ends, self.scorer(ends)

    def _completed_apart(self, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """`_completed`, the first candidate in a batch of its own."""
        parts = [self._completed(part, step) for part in (x[:, :1], x[:, 1:]) if part.numel()]
        return torch.cat([end for end, _ in parts], dim=1), torch.cat([score for _, score in parts], dim=1)


def _parts(count: int) -> list[int]:
    return [min(_AT_ONCE, count - begin) for begin in range(0, count, _AT_ONCE)]


def _take_best(x: Tensor, gain: Tensor, count: int) -> Tensor:
    """Of states [S, C, L, 3] the `count` with the highest gain [S, C], or all where there are fewer."""
    index = gain.topk(min(count, gain.shape[1]), dim=1).indices
    return x.gather(1, index[..., None, None].expand(-1, -1, *x.shape[-2:]))
