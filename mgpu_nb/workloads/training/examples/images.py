"""Classification of generated images: discs, frames and crosses, in noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset


class Shapes(Dataset[tuple[Tensor, Tensor]]):
    """Images [1, 16, 16], each with a shape somewhere and mirrored at random, and the kinds of their shapes."""

    def __init__(self, count: int, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.kinds = torch.randint(3, (count,), generator=draw)
        place = torch.randint(4, 12, (2, count, 1, 1), generator=draw)
        down, across = (torch.arange(16).view(1, -1, 1) - place[0]).abs(), (torch.arange(16) - place[1]).abs()
        shapes = torch.stack([down**2 + across**2 < 10, down.maximum(across) == 3, down.minimum(across) < 1])
        drawn = shapes[self.kinds, torch.arange(count)] & (down.maximum(across) < 4)
        self.images = (drawn + 0.3 * torch.randn(count, 16, 16, generator=draw))[:, None]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        mirrored = torch.rand(()) < 0.5  # the same for this image and epoch on every rank, and after a resume
        return self.images[number].flip(-1) if mirrored else self.images[number], self.kinds[number]


def data() -> tuple[Shapes, Shapes]:
    """Images for training, and those held out."""
    return Shapes(768, seed=0), Shapes(256, seed=1)


def model() -> nn.Module:
    """Two convolutions, and a linear layer on their mean over the image."""
    convolutions = [nn.Conv2d(1, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 32, 3, stride=2), nn.GELU()]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 3))


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of the images of a batch."""
    return cross_entropy(outputs, targets)


def metrics(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Whether each image [b] was recognised; the trainer takes the mean over all."""
    return {"accuracy": outputs.argmax(1) == targets}


def predict(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Kind that is the most probable, and the true one."""
    return {"kind": outputs.argmax(1), "true_kind": targets}
