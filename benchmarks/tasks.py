"""Small problems for the convergence suite: float32, made by a seed, seconds of one core each.

A problem has a model, a loss of a batch of training samples (or of all), and mostly a validation
loss over the fifth of the samples that the seed holds out.
"""

from __future__ import annotations

import math
import pydoc_data.topics
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss


@dataclass(frozen=True)
class Problem:
    """What is trained: ``model`` (parameters, buffers, train and eval), by its losses."""

    model: nn.Module
    loss: Callable[[Tensor | None], Tensor]  #: of the training samples picked; None: of all
    samples: int  #: in training; 1: there is nothing to draw batches from
    validation: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class Task:
    """A problem for each seed, and how it is trained."""

    build: Callable[[int], Problem]
    steps: int = 1000  #: gradient evaluations of the base optimizer
    largest_batch: int = 256
    clip: float = math.inf  #: largest norm of a gradient


def split(
    model: nn.Module,
    loss: Callable[..., Tensor],
    samples: tuple[Tensor, ...],
    *,
    most: int | None = None,
) -> Problem:
    """Train on 80 % of the samples, validate on the rest; order by torch's generator.

    With ``most``, the loss "of all" is that of the first so many training samples, and no more
    are held out: else watching a run would cost more than the run.
    """
    order = torch.randperm(len(samples[0]))
    count = len(order) * 4 // 5
    train = [column[order[:count]] for column in samples]
    held_out = [column[order[count:][:most]] for column in samples]

    def of(pick: Tensor | None) -> Tensor:
        chosen = slice(most) if pick is None else pick
        return loss(*(column[chosen] for column in train))

    return Problem(model, of, count, lambda: loss(*held_out))


# ---- tables and images of scikit-learn ------------------------------------------------------


@cache
def table(name: str) -> tuple[Tensor, Tensor]:
    """Features in [0, 1] (digits) or standardized, and labels or standardized targets."""
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    features, target = torch.from_numpy(x).float(), torch.from_numpy(y)
    if name == "digits":
        return features / 16, target
    features = (features - features.mean(dim=0)) / features.std(dim=0)
    if name == "diabetes":
        return features, ((target - target.mean()) / target.std()).float()[:, None]
    return features, target


def supervised(
    name: str,
    network: Callable[[], nn.Module],
    criterion: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    decay: float = 0.0,
) -> Callable[[int], Problem]:
    """Learn a table; without ``decay`` separable classes have no best network."""

    def build(seed: int) -> Problem:
        torch.manual_seed(seed)
        model = network()

        def loss(x: Tensor, y: Tensor) -> Tensor:
            value = criterion(model(x), y)
            if not (decay and model.training):
                return value
            return value + decay / 2 * sum(p.square().sum() for p in model.parameters())

        return split(model, loss, table(name))

    return build


def mlp(
    *widths: int, unit: Callable[[], nn.Module] = nn.Tanh, dropout: float = 0.0
) -> nn.Sequential:
    """Linear layers with units between, and dropout before the last."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), unit()]
    if dropout:
        layers.insert(-2, nn.Dropout(dropout))
    return nn.Sequential(*layers[:-1])


def cnn() -> nn.Module:
    """Two convolutions, the first normalized, on images of 8 x 8."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


# ---- text -----------------------------------------------------------------------------------

CONTEXT = 32


@cache
def windows(count: int = 4000) -> Tensor:
    """``CONTEXT + 1`` letters and spaces each of Python's own manual, without overlap."""
    words = re.findall("[a-z]+", " ".join(pydoc_data.topics.topics.values()).lower())
    characters = " ".join(words)[: count * (CONTEXT + 1)]
    codes = [max(ord(character) - ord("a") + 1, 0) for character in characters]
    return torch.tensor(codes).view(count, CONTEXT + 1)


class Transformer(nn.Module):
    """One causal layer of width 32 with two heads, over letters and the space."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.tokens = nn.Embedding(27, width)
        self.places = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.layer = nn.TransformerEncoderLayer(
            width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 27))
        self.mask: Tensor
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Logits of the next character at each place."""
        hidden = self.layer(self.tokens(codes) + self.places, self.mask, is_causal=True)
        logits: Tensor = self.head(hidden)
        return logits


def text(seed: int) -> Problem:
    """Predict the next character; the full batch is a fixed set of 256 windows."""
    torch.manual_seed(seed)
    model = Transformer()

    def loss(rows: Tensor) -> Tensor:
        return cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())

    return split(model, loss, (windows(),), most=256)


# ---- physics --------------------------------------------------------------------------------

VISCOSITY = 0.01 / math.pi


def jet(model: nn.Sequential, points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u, u_x, u_t and u_xx of a tanh network at points (x, t), carried along layer by layer."""
    directions = torch.eye(2).expand(len(points), 2, 2)
    h = torch.stack((points, directions[:, 0], directions[:, 1], torch.zeros_like(points)))
    for layer in model:
        if isinstance(layer, nn.Linear):
            h = h @ layer.weight.T
            h = torch.cat((h[:1] + layer.bias, h[1:]))
        else:
            value = torch.tanh(h[0])
            slope = 1 - value * value
            bent = slope * (h[3] - 2 * value * h[1] * h[1])
            h = torch.stack((value, slope * h[1], slope * h[2], bent))
    u, u_x, u_t, u_xx = h.squeeze(-1)
    return u, u_x, u_t, u_xx


def burgers(seed: int) -> Problem:
    """u_t + u u_x = nu u_xx with u(x, 0) = -sin(pi x), u(+-1, t) = 0; samples are collocations."""
    torch.manual_seed(seed)
    model = mlp(2, 20, 20, 20, 20, 1)
    x, t = torch.linspace(-1, 1, 64), torch.linspace(0, 1, 32)
    walls = torch.cat([torch.stack((side * torch.ones(32), t), dim=1) for side in (-1, 1)])
    known = torch.cat((torch.stack((x, torch.zeros(64)), dim=1), walls))
    values = torch.cat((-torch.sin(math.pi * x), torch.zeros(64)))[:, None]

    def loss(points: Tensor) -> Tensor:
        u, u_x, u_t, u_xx = jet(model, points)
        residual = u_t + u * u_x - VISCOSITY * u_xx
        return residual.square().mean() + 2 * mse_loss(model(known), values)

    return split(model, loss, (torch.rand(500, 2) * torch.tensor([2.0, 1.0]) - torch.eye(2)[0],))


# ---- functions and matrices -----------------------------------------------------------------


def quadratic(seed: int) -> Problem:
    """Dimension 100, condition 1e4, minimum 0; samples add linear terms that sum to zero."""
    torch.manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(100, 100))[0]
    hessian = axes @ torch.diag(torch.logspace(-4, 0, 100)) @ axes.T
    terms = 0.1 * torch.randn(1024, 100)
    terms -= terms.mean(dim=0)
    w = nn.Parameter(torch.randn(100))

    def loss(pick: Tensor | None) -> Tensor:
        value: Tensor = torch.dot(w, hessian @ w) / 2
        return value if pick is None else value + torch.dot(terms[pick].mean(dim=0), w)

    return Problem(nn.ParameterList([w]), loss, len(terms))


def rosenbrock(seed: int) -> Problem:
    """Dimension 20, from near (-1.2, 1, -1.2, 1, ...)."""
    torch.manual_seed(seed)
    w = nn.Parameter(torch.tensor([-1.2, 1.0]).repeat(10) + 0.1 * torch.randn(20))

    def loss(pick: Tensor | None) -> Tensor:
        valley = (w[1:] - w[:-1].square()).square().sum()
        return valley.mul(100) + (w[:-1] - 1).square().sum()

    return Problem(nn.ParameterList([w]), loss, 1)


def factorization(seed: int) -> Problem:
    """60 % of the entries of a 60 x 40 matrix of rank 5, condition 10, with noise, as U V^T."""
    torch.manual_seed(seed)
    matrix = torch.randn(60, 5) * torch.logspace(0, -1, 5) @ torch.randn(5, 40)
    matrix += 0.03 * torch.randn(60, 40)
    rows, columns = (torch.rand(60, 40) < 0.6).nonzero(as_tuple=True)
    u, v = (nn.Parameter(0.3 * torch.randn(size, 5)) for size in (60, 40))

    def loss(i: Tensor, j: Tensor, value: Tensor) -> Tensor:
        return mse_loss((u[i] * v[j]).sum(dim=1), value)

    return split(nn.ParameterList([u, v]), loss, (rows, columns, matrix[rows, columns]))


TASKS: dict[str, Task] = {
    "digits MLP": Task(supervised("digits", lambda: mlp(64, 64, 10))),
    "digits CNN": Task(supervised("digits", cnn), steps=600),
    "diabetes": Task(supervised("diabetes", lambda: mlp(10, 32, 32, 1), mse_loss)),
    "breast cancer": Task(
        supervised("breast_cancer", lambda: mlp(30, 32, 2, unit=nn.ReLU), decay=1e-3)
    ),
    "wine": Task(supervised("wine", lambda: mlp(13, 32, 3), decay=1e-3)),
    "transformer": Task(text, steps=300, largest_batch=64),
    "burgers": Task(burgers),
    "quadratic": Task(quadratic),
    "rosenbrock": Task(rosenbrock),
    "factorization": Task(factorization),
}

#: Run where they are named: gradients that are cut at norms that a few, or most, of them have.
MORE_TASKS: dict[str, Task] = {
    f"{name}, clipped at {norm}": replace(TASKS[name], clip=norm)
    for name, norms in {
        "digits MLP": (1.0, 0.1),
        "diabetes": (1.0, 0.1),
        "transformer": (0.1,),
    }.items()
    for norm in norms
}
MORE_TASKS |= {
    "digits MLP, dropout": Task(supervised("digits", lambda: mlp(64, 64, 10, dropout=0.2))),
    "diabetes, dropout": Task(
        supervised("diabetes", lambda: mlp(10, 32, 32, 1, dropout=0.2), mse_loss)
    ),
}
ALL_TASKS = TASKS | MORE_TASKS
