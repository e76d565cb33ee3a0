"""ConvE, the link predictor whose training the influences are about."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["AllRows", "ConvE", "Shape"]

_KERNEL = 3


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a ConvE.

    Attributes
    ----------
    entities, relations
        Numbers of embeddings.
    height, width
        An embedding of ``height * width`` numbers is laid out as an image of that size.
    channels
        Of the convolution.
    kernel
        Side of its square kernel.
    """

    entities: int
    relations: int
    height: int = 10
    width: int = 20
    channels: int = 32
    kernel: int = _KERNEL

    def __post_init__(self) -> None:
        """Check the sizes."""
        for name in ("entities", "relations", "height", "width", "channels", "kernel"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: give a whole number, one or more")
        if self.kernel > min(2 * self.height, self.width):
            raise ValueError(
                f"kernel={self.kernel} is larger than the image of {2 * self.height} x {self.width}: give a smaller one"
            )

    @property
    def dimension(self) -> int:
        """Numbers in an embedding."""
        return self.height * self.width

    @property
    def positions(self) -> tuple[int, int]:
        """Height and width of what the convolution gives."""
        return 2 * self.height - self.kernel + 1, self.width - self.kernel + 1

    @classmethod
    def of(cls, state: dict[str, Tensor], height: int | None = None) -> Shape:
        """Sizes that a state dict was made for.

        Parameters
        ----------
        state
            Weights of a `ConvE`.
        height
            Of the image of an embedding; needed where the shapes of the weights fit several.

        Raises
        ------
        ValueError
            If the shapes fit no ConvE, or several; the message says which.
        """
        dimensions = {"entities": 2, "relations": 2, "convolution": 4, "linear": 2}
        wanted = {f"{name}.weight": number for name, number in dimensions.items()}
        found = {name: tuple(state[name].shape) for name in wanted if name in state}
        odd = [name for name, number in wanted.items() if len(found.get(name, ())) != number]
        if odd:
            why = f"shape {found[odd[0]]}" if odd[0] in found else "not there"
            raise ValueError(
                f"these are no weights of a ConvE, {odd[0]} is {why}: another model is analysed by model= and loss="
            )
        (entities, dimension), (relations, _), (channels, _, kernel, _), (_, flat) = found.values()
        divisors = [h for h in range(1, dimension + 1) if dimension % h == 0]
        heights = [height] if height else divisors
        fitting = [
            h
            for h in heights
            if dimension % h == 0 and flat == channels * (2 * h - kernel + 1) * (dimension // h - kernel + 1)
        ]
        if len(fitting) > 1:  # height h, width w and height w / 2, width 2 h have as many places
            tall = " and ".join(map(str, sorted(fitting)))
            raise ValueError(
                f"the weights fit images of height {tall}, and no configuration beside them tells which: say which one "
                "as height (--height)"
            )
        if fitting:
            return cls(entities, relations, fitting[0], dimension // fitting[0], channels, kernel)
        told = f" and height {height}: give another height" if height else ""
        raise ValueError(
            f"linear.weight has {flat} inputs, which no image of embeddings of {dimension} numbers gives with "
            f"{channels} channels of {kernel} x {kernel}{told}"
        )


class AllRows(nn.Module):
    """Product of vectors [B, d] with every row of an embedding, plus a bias per row: [B, rows]."""

    def __init__(self, rows: nn.Embedding, bias: nn.Embedding) -> None:
        super().__init__()
        self.tied = (rows, bias)  # in a tuple: the parameters belong to the embeddings

    def forward(self, x: Tensor) -> Tensor:
        """Products."""
        rows, bias = self.tied
        return x @ rows.weight.T + bias.weight[:, 0]


class ConvE(nn.Module):
    """Scores (head, relation) against all entities (Dettmers et al., 2018).

    ``[e_h; r_r]`` as an image of ``2 height x width`` -> batch norm -> convolution -> batch norm -> ReLU -> linear ->
    batch norm -> ReLU -> product with every entity's embedding, plus its bias.

    Attributes
    ----------
    use_inverse_triples
        Whether relations 2 r and 2 r + 1 are a relation and its inverse, as of PyKEEN.
    """

    use_inverse_triples = False

    def __init__(self, shape: Shape, dropout: float = 0.2) -> None:
        super().__init__()
        self.shape = shape
        size, (rows, columns) = shape.dimension, shape.positions
        self.entities = nn.Embedding(shape.entities, size)
        self.relations = nn.Embedding(shape.relations, size)
        self.norm_image = nn.BatchNorm2d(1)
        self.convolution = nn.Conv2d(1, shape.channels, shape.kernel)
        self.norm_features = nn.BatchNorm2d(shape.channels)
        self.linear = nn.Linear(shape.channels * rows * columns, size)
        self.norm_hidden = nn.BatchNorm1d(size)
        self.bias = nn.Embedding(shape.entities, 1)
        self.all_tails = AllRows(self.entities, self.bias)
        self.drop_image, self.drop_hidden = nn.Dropout(dropout), nn.Dropout(dropout)
        self.drop_features = nn.Dropout2d(dropout)
        nn.init.xavier_normal_(self.entities.weight)
        nn.init.xavier_normal_(self.relations.weight)
        nn.init.zeros_(self.bias.weight)

    def hidden(self, heads: Tensor, relations: Tensor) -> Tensor:
        """What is compared with the entities [B, d] for heads [B] and relations [B]."""
        shape = self.shape
        pairs = torch.stack([self.entities(heads), self.relations(relations)], 1)
        image = pairs.reshape(-1, 1, 2 * shape.height, shape.width)
        x = self.convolution(self.drop_image(self.norm_image(image)))
        x = self.drop_features(functional.relu(self.norm_features(x)))
        return functional.relu(self.norm_hidden(self.drop_hidden(self.linear(x.flatten(1)))))

    def forward(self, heads: Tensor, relations: Tensor) -> Tensor:
        """Scores [B, entities] of every entity as the tail."""
        scores: Tensor = self.all_tails(self.hidden(heads, relations))
        return scores

    def score_tails(self, hidden: Tensor, tails: Tensor) -> Tensor:
        """Scores [B] of hidden vectors [B, d] with one tail [B] each."""
        scores: Tensor = (hidden * self.entities(tails)).sum(-1) + self.bias(tails).squeeze(-1)
        return scores

    def score(self, triples: Tensor) -> Tensor:
        """Scores [B] of triples [B, 3]: head, relation, tail."""
        heads, relations, tails = triples.unbind(-1)
        return self.score_tails(self.hidden(heads, relations), tails)
