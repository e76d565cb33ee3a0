"""Four ways to the product of two gradients: what each makes of a batch, and how it multiplies two of these."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from .conve import ConvE
from .conve_factors import SAME_ROWS, Passes
from .examples import at, count, filled, on
from .factors import Factors, factorise, product, squares, squares_of
from .loss import TailLoss

__all__ = ["ENGINES", "Engine", "Loss"]

HALVES = (torch.bfloat16, torch.float16)
CHECKS = 10  # batches of which one gradient is compared with autograd's

Loss = Callable[[Any, Any], Tensor]
Parameters = dict[str, Tensor]


class Engine(ABC):
    """Products of the gradients of a model's losses.

    Examples come in batches: triples [B, 3], or tensors [B, ...] in tuples and dicts as the loss takes them.

    Parameters
    ----------
    model
        In eval mode.
    loss
        Takes model and a batch, returns losses [B].
    names
        Of the parameters that count.
    mixed_precision
        Model and loss run under autocast to bfloat16; products of gradients do not.
    compiled
        The gradients through torch.compile.

    Attributes
    ----------
    dtype, device
        Type and place of the products: those of the parameters that count, in single precision at least.
    rounded
        Whether gradients are computed in 16 bits somewhere.
    """

    train_multiple = test_multiple = SAME_ROWS

    def __init__(
        self, model: nn.Module, loss: Loss, names: Sequence[str], mixed_precision: bool, compiled: bool
    ) -> None:
        self.model, self.loss, self.names = model, loss, list(names)
        every = dict(model.named_parameters())
        counted = [every[name] for name in self.names] or list(every.values())
        # The first parameter may be a frozen one, of another type or elsewhere.
        self.dtype = reduce(torch.promote_types, (each.dtype for each in counted), torch.float32)
        self.device = counted[0].device
        self.dtype_name = str(self.dtype).removeprefix("torch.")
        self.rounded = mixed_precision or any(each.dtype in HALVES for each in every.values())
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=mixed_precision)
        if compiled:
            self._compile()

    def _compile(self) -> None:
        raise ValueError(
            f"the engine {type(self).__name__.lower()} cannot be compiled: choose factored or vmap"
        )

    def rows(self, batch: Any, multiple: int = 1) -> Any:
        """Batch as the loss takes it, on the model's device; on a CPU with its last example repeated to a multiple.

        There the bits of a product's rows and columns depend on how many there are, but for whole multiples.
        """
        batch = on(self.device, filled(batch, multiple if self.device.type == "cpu" else 1))
        return self.loss.rows(batch, self.model) if isinstance(self.loss, TailLoss) else batch

    def order(self, examples: Any) -> Tensor | None:
        """Order [n] in which examples cost least; None if all are alike."""
        return None

    @abstractmethod
    def train_side(self, batch: Any) -> Any:
        """What `product` needs of a batch of training examples, as `rows` gives it."""

    def test_side(self, batch: Any) -> Any:
        """What `product` needs of a batch of test examples, as `rows` gives it."""
        return self.train_side(batch)

    @abstractmethod
    def product(self, train: Any, test: Any) -> Tensor:
        """Products [n, m] of two sides."""

    @abstractmethod
    def squares(self, train: Any) -> Tensor:
        """Products [n] of each gradient of a side with itself."""


class Factored(Engine):
    """Never makes a gradient: products of its factors."""

    def __init__(self, *arguments: Any) -> None:
        self.passes = Passes()
        super().__init__(*arguments)
        self.unchecked, self.checks = set(self.names), CHECKS

    def _compile(self) -> None:
        if not self._is_conve():
            raise ValueError("the engine factored is compiled for ConvE only: choose vmap, or no compilation")
        self.passes = Passes(compiled=True)

    def _is_conve(self) -> bool:  # a class of the user's that inherits from it may compute otherwise
        return type(self.model) is ConvE and isinstance(self.loss, TailLoss)

    def order(self, examples: Any) -> Tensor | None:
        """Triples that share head and relation together: a ConvE passes them once."""
        if not self._is_conve():
            return None
        return torch.argsort(examples[:, 0] * (examples[:, 1].max() + 1) + examples[:, 1], stable=True)

    def train_side(self, batch: Any) -> Factors:
        """Factors of the gradients."""
        with self.autocast:
            if self._is_conve():
                model, loss = cast("ConvE", self.model), cast("TailLoss", self.loss)
                factors = self.passes.factorise(model, loss, batch, self.names)
            else:
                factors = factorise(self.model, self.loss, batch, self.names)
        factors = {name: [term.to(self.dtype) for term in terms] for name, terms in factors.items()}
        if self.unchecked and self.checks and not self._is_conve():
            self._check(batch, factors)
        return factors

    def _check(self, batch: Any, factors: Factors) -> None:
        """Compare a gradient with autograd's: a model may use its weights outside of its layers.

        It is that of the largest loss: an example of none, a hinge that is satisfied say, has no gradient and tells
        nothing. Batches are checked until each parameter has had one that is not zero.
        """
        self.checks -= 1
        parameters = [dict(self.model.named_parameters())[name] for name in self.names]
        with self.autocast, torch.no_grad():
            number = int(self.loss(self.model, batch).argmax())
        with self.autocast, torch.enable_grad():
            one = self.loss(self.model, at(batch, slice(number, number + 1)))[0]
            found = torch.autograd.grad(one, parameters, allow_unused=True)
        for name, gradient in zip(self.names, found, strict=True):
            wanted = 0.0 if gradient is None else float((gradient.double() ** 2).sum())
            ours = float(squares_of(factors[name])[number]) if factors[name] else 0.0
            if wanted or ours:
                self.unchecked.discard(name)
            tolerance = 0.05 if self.rounded else 1e-3
            if abs(ours - wanted) > tolerance * max(ours, wanted):
                raise ValueError(
                    f"the factored engine misses a part of the gradient of {name!r}, which the model uses in another "
                    f"way than by calling its layer: choose engine='vmap', or layers without it"
                )

    def product(self, train: Factors, test: Factors) -> Tensor:
        """Multiply factor by factor."""
        return product(train, test)

    def squares(self, train: Factors) -> Tensor:
        """Multiply each sample's factors with themselves."""
        return squares(train)


class _Called(nn.Module):
    """The loss as a module, so that `functional_call` can put other parameters into the model."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(self.model, batch)


class _Functional(Engine):
    """The losses as a function of the parameters, for torch.func."""

    def __init__(self, *arguments: Any) -> None:
        model, loss, names = arguments[:3]
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.counted = {name: state.pop(name).detach() for name in names}
        rest = {f"model.{name}": value.detach() for name, value in state.items()}
        whole = _Called(model, loss)

        def losses(parameters: Parameters, batch: Any) -> Tensor:
            given = {f"model.{name}": value for name, value in parameters.items()}
            result: Tensor = functional_call(whole, {**given, **rest}, (batch,))
            return result

        self.losses = losses
        self.gradients = vmap(self.gradient, in_dims=(None, 0))
        super().__init__(*arguments)

    def gradient(self, parameters: Parameters, example: Any) -> Parameters:
        """Gradient of the loss of one example."""
        alone = at(example, None)  # a batch of one
        found: Parameters = grad(lambda p: self.losses(p, alone)[0])(parameters)
        return found

    def written_out(self, batch: Any) -> Tensor:
        """Gradients [B, parameters] of a batch."""
        with self.autocast:
            each = self.gradients(self.counted, batch)
        return torch.cat([value.flatten(1).to(self.dtype) for value in each.values()], 1)


class Vmap(_Functional):
    """Gradients of a batch written out, [B, parameters], and one product of matrices."""

    def _compile(self) -> None:
        self.gradients = torch.compile(self.gradients, dynamic=False)

    def train_side(self, batch: Any) -> Tensor:
        """Gradients [B, parameters]."""
        return self.written_out(batch)

    def product(self, train: Tensor, test: Tensor) -> Tensor:
        """Multiply the matrices."""
        return train @ test.T

    def squares(self, train: Tensor) -> Tensor:
        """Square the gradients."""
        return train.square().sum(1)


class Jvp(_Functional):
    """Forward mode along a test gradient g: d/de L_i(w + e g) = grad L_i . g, for a whole batch in one pass.

    The model itself adds up what a product consists of, in its own precision.
    """

    test_multiple = 1  # a pass for each

    def train_side(self, batch: Any) -> Any:
        """The examples themselves: all work is done along directions of the test side."""
        return batch

    def test_side(self, batch: Any) -> list[Parameters]:
        """Gradients, as directions for the derivatives."""
        with self.autocast:
            return [self.gradient(self.counted, at(batch, n)) for n in range(count(batch))]

    def product(self, train: Any, test: list[Parameters]) -> Tensor:
        """Differentiate the losses along each direction."""
        with self.autocast:
            columns = [
                jvp(lambda parameters: self.losses(parameters, train), (self.counted,), (direction,))[1]
                for direction in test
            ]
        return torch.stack(columns, 1).to(self.dtype)

    def squares(self, train: Any) -> Tensor:
        """Write the gradients out: along their own direction each example would take a pass of its own."""
        return self.written_out(train).square().sum(1)


class Loop(Engine):
    """A gradient per example by autograd, one after the other: the reference."""

    train_multiple = test_multiple = 1

    def train_side(self, batch: Any) -> list[list[Tensor]]:
        """Gradients by example, a list of tensors each."""
        parameters = [dict(self.model.named_parameters())[name] for name in self.names]
        each: list[list[Tensor]] = []
        for number in range(count(batch)):
            with self.autocast, torch.enable_grad():
                loss = self.loss(self.model, at(batch, slice(number, number + 1)))[0]
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            gradients = (
                torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)
            )
            each.append([gradient.to(self.dtype) for gradient in gradients])
        return each

    def product(self, train: list[list[Tensor]], test: list[list[Tensor]]) -> Tensor:
        """Multiply pair by pair."""
        return torch.stack([torch.stack([_dot(one, other) for other in test]) for one in train])

    def squares(self, train: list[list[Tensor]]) -> Tensor:
        """Multiply each with itself."""
        return torch.stack([_dot(one, one) for one in train])


def _dot(one: list[Tensor], other: list[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()


ENGINES: dict[str, type[Engine]] = {"factored": Factored, "vmap": Vmap, "jvp": Jvp, "loop": Loop}
