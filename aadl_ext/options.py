"""The methods and their options: frozen records, checked when they are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch

ROW_DTYPES = (None, torch.float32, torch.float64, torch.bfloat16, torch.float16)
SCOPES = ("all", "group", "tensor")


def _check_choice(options: Any, name: str, allowed: tuple[Any, ...]) -> None:
    value = getattr(options, name)
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(map(repr, allowed))}")


def _check_safeguards(options: Any, allowed: tuple[str, ...]) -> None:
    """Make it a tuple of names, in the order in which they are asked."""
    value = options.safeguard
    several = isinstance(value, Iterable) and not isinstance(value, str)
    given = () if value is None else tuple(value) if several else (value,)
    if any(name not in allowed for name in given):
        names = ", ".join(map(repr, allowed))
        raise ValueError(f"safeguard is {value!r}; choose from {names}, several, or None")
    object.__setattr__(options, "safeguard", tuple(name for name in allowed if name in given))


def _check_integer(options: Any, name: str, least: int) -> None:
    value = getattr(options, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be an integer >= {least}")


def _check_real(options: Any, name: str, allowed: str, holds: Callable[[float], bool]) -> None:
    value = getattr(options, name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not holds(value):
        raise ValueError(f"{name} is {value!r}; allowed is {allowed}")


def _check_type(options: Any, name: str, kind: type, optional: bool = False) -> None:
    value = getattr(options, name)
    if not isinstance(value, kind) and not (optional and value is None):
        raise ValueError(f"{name} is {value!r}; it must be of type {kind.__name__}")


def _as_device(name: str, value: torch.device | str | None) -> torch.device | None:
    """Parse a device option; the device must be usable here and now."""
    try:
        if value is None:
            return None
        torch.empty(0, device=value)
        return torch.device(value)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"{name} is {value!r}, which cannot be used here: {error}") from error


@dataclass(frozen=True)
class Storage:
    """Where and how the history is kept.

    Attributes:
        dtype: of the stored rows; None: float64 if any parameter is, else float32, or bfloat16 with
            subspace Newton. bfloat16 and float16 halve the memory; entries below 6e-8 are lost in
            float16, not in bfloat16.
        device: of the history and of all passes over it, a device or its name; None: the device
            of the parameters.
        offload: whether rows of subspace Newton are kept in host memory (pinned, with CUDA) and
            come to the device in parts, each while the one before is computed with, at the end of
            a block. Half of the memory of a history; without quasi-Newton steps. Of no use to
            parameters on the CPU.
        compute_device: of the small m x m solve; None: as the history.

    Raises:
        ValueError: the dtype is not allowed, a device cannot be used here and now, or there is
            one and ``offload``.
    """

    dtype: torch.dtype | None = None
    device: torch.device | None = None
    offload: bool = field(default=False, kw_only=True)
    compute_device: torch.device | None = None

    def __post_init__(self) -> None:
        _check_choice(self, "dtype", ROW_DTYPES)
        for name in ("device", "compute_device"):
            object.__setattr__(self, name, _as_device(name, getattr(self, name)))
        _check_type(self, "offload", bool)
        if self.offload and self.device is not None:
            raise ValueError(
                f"offload is True and device is {self.device}; passes over rows in host memory are "
                "made on the device of the parameters: leave one of them out"
            )


@dataclass(frozen=True)
class Averaging:
    """Moving average of the last iterates, while they oscillate (Eq. 11, 15 and 16).

    Attributes:
        window: t >= 2, iterates in the mean.
        threshold: epsilon > 0: the parameters become the mean while the largest standard deviation
            of an entry is above epsilon times the largest entry of the last step.

    Raises:
        ValueError: an option is out of range.
    """

    window: int = 5
    threshold: float = 0.1

    def __post_init__(self) -> None:
        _check_integer(self, "window", 2)
        _check_real(self, "threshold", "threshold > 0", lambda x: x > 0)


@dataclass(frozen=True)
class Anderson:
    """Algorithm 1 of the paper: Anderson acceleration of steps, optionally averaged.

    For optimizers whose step depends on the parameters alone: SGD without momentum on full batches.
    Defaults and the first six names are those of ORNL's AADL.

    Attributes:
        relaxation: beta, 0 < beta <= 1: see ``mixing``.
        wait_iterations: no extrapolation at steps k <= this, counting from k = 0.
        history_depth: m, columns of the least-squares problem (AADL counts iterates: its depth d
            gives d - 2 columns). 0: no extrapolation, for averaging alone.
        store_each_nth: q, steps between two stored pairs.
        frequency: p, steps between two extrapolations.
        reg_acc: ridge of the least-squares problem in units of the squared column lengths (in AADL
            an absolute number).
        average: whether to average the last iterates while they oscillate; True is
            :class:`Averaging` with its defaults, False and None are no averaging.
        mixing: "paper", Eq. 6: (1 - beta) w + beta (w + r - (W + R) gamma); "anderson", the
            classic damping: w - W gamma + beta (r - R gamma).
        solver: "gram", float64 normal equations; "tsqr", orthogonal; "auto", "tsqr" for a float64
            history and else "gram".
        safeguard: tests that an extrapolation must pass, one name or several, or None: every finite
            one is kept, however far it leads. "residual" rejects it unless the next step's
            residual is smaller (Algorithm 1); no extra evaluation. "loss" calls the closure of
            ``step(closure)`` twice more and rejects it unless the loss of the batch is below that
            of the base step (BatchNorm statistics and gradients of parameters that are not
            this optimizer's see the calls). "descent" rejects ways that lead back, against the base
            optimizer's own step (a small residual is sought at saddles, too), and points where the
            loss grows along the way, by the next step's gradient, which the base optimizer then
            does not see; it keeps momentum and Adam in bounds, whose steps lag behind.
            "limits" rejects ways ten times as long as all that the columns have seen.
        scope: "all", one least-squares problem for all parameters; "group", one per parameter group
            (AADL); "tensor", one per parameter tensor.
        storage: where and how the history is kept.

    Raises:
        ValueError: an option is out of range.
    """

    relaxation: float = 0.1
    wait_iterations: int = 1
    history_depth: int = 15
    store_each_nth: int = 1
    frequency: int = 1
    reg_acc: float = 0.0
    average: Averaging | bool | None = None
    mixing: str = "paper"
    solver: str = "auto"
    safeguard: str | Iterable[str] | None = ("residual", "descent", "limits")
    scope: str = "all"
    storage: Storage = Storage()

    def __post_init__(self) -> None:
        _check_real(self, "relaxation", "0 < relaxation <= 1", lambda x: 0 < x <= 1)
        for name, least in (("wait_iterations", 0), ("history_depth", 0)):
            _check_integer(self, name, least)
        for name in ("store_each_nth", "frequency"):
            _check_integer(self, name, 1)
        _check_real(self, "reg_acc", "0 <= reg_acc < inf", lambda x: 0 <= x < math.inf)
        if isinstance(self.average, bool):
            object.__setattr__(self, "average", Averaging() if self.average else None)
        _check_type(self, "average", Averaging, optional=True)
        _check_choice(self, "mixing", ("paper", "anderson"))
        _check_choice(self, "solver", ("auto", "gram", "tsqr"))
        _check_safeguards(self, ("residual", "descent", "limits", "loss"))
        _check_choice(self, "scope", SCOPES)
        _check_type(self, "storage", Storage)
        if self.storage.offload:
            raise ValueError(
                "offload is for subspace Newton: Anderson reads its rows in every step; keep them "
                'on the host with Storage(device="cpu")'
            )

    @property
    def tests(self) -> tuple[str, ...]:
        """Names of the safeguards, in the order in which they are asked."""
        return tuple(self.safeguard or ())

    @property
    def averaging(self) -> Averaging | None:
        """``average``, resolved."""
        return self.average if isinstance(self.average, Averaging) else None

    def solver_for(self, dtype: torch.dtype) -> str:
        """Resolve "auto": products of float32 are exact in float64, those of float64 are not."""
        if self.solver != "auto":
            return self.solver
        return "tsqr" if dtype == torch.float64 else "gram"


@dataclass(frozen=True)
class SubspaceNewton:
    """Newton steps in the span of the last moves of block means; under any base optimizer.

    Attributes:
        history_depth: m, moves kept: directions of the small problem.
        block_length: q, steps of a block: the means of points and gradients over it are a pair.
        noise_samples: samples of the gradient's noise kept, each a vector; 0: no shrinkage.
        noise_shrinkage: weight of the noise that reduces each direction's step, and with half of it
            what the Hessian tells of the gradient at one block mean from those at others.
        trust_radius: first limit of a step, in units of the way between the last two block means;
            it doubles where steps could have been longer and shrinks where they went too far.
        max_gradient_growth: a step is rejected if the next gradient is more than this times as
            large as recent ones.
        adaptive_blocks: whether blocks grow up to four times ``block_length`` while steps go too
            far because of noise, and shrink to a quarter of it while there is hardly any and whole
            steps are right. Without noise samples they keep their length.
        quasi_newton: whether steps are those of L-BFGS while gradients repeat, as they do on full
            batches without dropout, and gain more than the base optimizer's. A base step that is
            left out tells, where a block of gradients has hardly any noise, at step 500 and rarely
            after that. Not with a safeguard "loss", nor without "residual".
        rest_above: share of the largest learning rate so far. Once a schedule has moved the rate it
            rests above that share, in warm-up and near the peak: it takes no step, sees no gradient
            and costs next to nothing; below it steps are rare. 1: it never rests, and takes more,
            for rates that are too low. A constant rate is no schedule.
        sketch: D, entries of the sketches (``ops.sketch``) that are kept in place of whole
            gradients and their noise; 0: none. Only moves are whole then, and the small problem is
            nearly right: to about one over the root of D. Without quasi-Newton steps, with scope
            "all", and for parameters that are not spread over ranks.
        safeguard: tests that a step must pass, one name or several, or None: every finite one is
            kept. "residual" rejects it by the next gradient, which training computes anyway;
            "descent" rejects steps along which the loss grows; "limits" cuts steps to the trust
            radius and damps them; "loss" calls the closure of ``step(closure)`` twice more and
            rejects it unless the loss of the batch is lower.
        scope: "all", one small problem for all parameters; "group", one per parameter group;
            "tensor", one per parameter tensor.
        storage: where and how the history is kept.

    Raises:
        ValueError: an option is out of range.
    """

    history_depth: int = 4
    block_length: int = 10
    noise_samples: int = 4
    noise_shrinkage: float = 4.0
    trust_radius: float = 4.0
    max_gradient_growth: float = 2.0
    adaptive_blocks: bool = True
    quasi_newton: bool = True
    rest_above: float = 0.25
    sketch: int = 0
    safeguard: str | Iterable[str] | None = ("residual", "descent", "limits")
    scope: str = "all"
    storage: Storage = Storage()

    def __post_init__(self) -> None:
        for name in ("history_depth", "block_length"):
            _check_integer(self, name, 1)
        for name in ("noise_samples", "sketch"):
            _check_integer(self, name, 0)
        _check_real(
            self, "noise_shrinkage", "0 <= noise_shrinkage < inf", lambda x: 0 <= x < math.inf
        )
        for name in ("trust_radius", "max_gradient_growth"):
            _check_real(self, name, f"{name} > 0", lambda x: x > 0)
        for name in ("adaptive_blocks", "quasi_newton"):
            _check_type(self, name, bool)
        _check_real(self, "rest_above", "0 < rest_above <= 1", lambda x: 0 < x <= 1)
        _check_safeguards(self, ("residual", "descent", "limits", "loss"))
        _check_choice(self, "scope", SCOPES)
        _check_type(self, "storage", Storage)
        if self.sketch and self.scope != "all":
            raise ValueError(
                f'sketch is {self.sketch} and scope "{self.scope}"; sketches are of all parameters '
                'together: take scope "all", or sketch=0'
            )

    @property
    def tests(self) -> tuple[str, ...]:
        """Names of the safeguards, in the order in which they are asked."""
        return tuple(self.safeguard or ())

    @cached_property
    def uses_quasi_newton(self) -> bool:
        """Whether gradients are watched: quasi-Newton steps need them whole, and judge by them."""
        judges = "residual" in self.tests and "loss" not in self.tests
        whole = not self.sketch and not self.storage.offload
        return self.quasi_newton and judges and whole

    @classmethod
    def memory_light(cls, **options: Any) -> SubspaceNewton:
        """10 vectors of the size of the parameters in place of 12: 3 moves, 2 noise samples."""
        return cls(**{"history_depth": 3, "noise_samples": 2, **options})

    @classmethod
    def sketched(cls, **options: Any) -> SubspaceNewton:
        """5 vectors for networks of a million parameters and more; see ``sketch``."""
        return cls(**{"sketch": 16384, **options})


@dataclass(frozen=True)
class AndersonMixing:
    """Anderson acceleration of fixed points x = f(x), for :func:`aadl_ext.fixed_point`.

    With r = f(x) - x and the differences W, R of the last m points and residuals the next point
    is ``x - W gamma + beta (r - R gamma)`` (Walker and Ni 2011). Names shared with
    :class:`Anderson` mean the same.

    Attributes:
        history_depth: m, columns of the least-squares problem. 0: plain iteration, damped by beta.
        relaxation: beta, 0 < beta <= 1.
        kind: "II", least ``|r - R gamma|``; on linear f with all the history this is GMRES. "I",
            ``W (r - R gamma) = 0``, Broyden's good method.
        store_each_nth: q, steps between two stored pairs.
        frequency: p, steps between two extrapolations; between them are plain damped steps
            (alternating Anderson, Pratapa, Suryanarayana and Pask 2016).
        restart_each_nth: steps after which the history is forgotten; 0: never.
        reg_acc: ridge of the least-squares problem in units of the squared column lengths; "II".
        solver: "gram", float64 normal equations; "tsqr", orthogonal; "auto", "tsqr" for float64
            and else "gram". "I" needs "gram".
        safeguard: tests that the extrapolation of a sample must pass, one name or several, or
            None. "residual": f is nearer there than at the last stored point; else the sample goes
            back, forgets its history and takes a plain step. "limits": the way from the plain step
            is at most ten times as long as those that the columns have seen together, else the
            plain step is taken. A point where f is not finite is always left like the first.

    Raises:
        ValueError: an option is out of range.
    """

    history_depth: int = 5
    relaxation: float = 1.0
    kind: str = "II"
    store_each_nth: int = 1
    frequency: int = 1
    restart_each_nth: int = 0
    reg_acc: float = 0.0
    solver: str = "auto"
    safeguard: str | Iterable[str] | None = None

    def __post_init__(self) -> None:
        _check_choice(self, "kind", ("I", "II"))
        _check_integer(self, "restart_each_nth", 0)
        _check_safeguards(self, ("residual", "limits"))
        if self.kind == "I" and (self.solver == "tsqr" or self.reg_acc):
            raise ValueError('kind "I" has neither a ridge nor solver "tsqr"; leave them out')
        self.per_sample()  # which checks what they share

    def per_sample(self) -> Anderson:
        """What the history asks for: a least-squares problem for each segment."""
        return Anderson(
            relaxation=self.relaxation,
            history_depth=self.history_depth,
            store_each_nth=self.store_each_nth,
            frequency=self.frequency,
            reg_acc=self.reg_acc,
            solver="gram" if self.kind == "I" else self.solver,
            safeguard=self.safeguard,
            scope="tensor",
        )


Method = Anderson | SubspaceNewton


def as_dict(method: Method) -> dict[str, Any]:
    """Plain values by name, and that of the method."""
    return {"method": type(method).__name__, **asdict(method)}
