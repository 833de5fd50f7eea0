"""Shapes and dtypes of what the compiled ops return, for tracing without data."""

from __future__ import annotations

import torch


def register() -> None:
    """Tell torch of the compiled ops, once they are loaded."""
    double = torch.float64
    for name in ("gather", "scatter", "push_block"):
        torch.library.register_fake(f"aadl_ext::{name}", lambda *_: None)

    @torch.library.register_fake("aadl_ext::squared_norm")
    def _(tensors):  # type: ignore[no-untyped-def]
        return tensors[0].new_empty((), dtype=double)

    @torch.library.register_fake("aadl_ext::add_sample")
    def _(point_sum, *_):  # type: ignore[no-untyped-def]
        return point_sum.new_empty(2, dtype=double)

    @torch.library.register_fake("aadl_ext::cross_products")
    def _(rows, vectors, offsets):  # type: ignore[no-untyped-def]
        return rows.new_empty(len(offsets) - 1, rows.shape[0], len(vectors), dtype=double)

    @torch.library.register_fake("aadl_ext::push_secant")
    def _(before, *_):  # type: ignore[no-untyped-def]
        return before.new_empty(3, dtype=double)

    @torch.library.register_fake("aadl_ext::extrapolate")
    def _(before, *_):  # type: ignore[no-untyped-def]
        return before.new_empty(())

    @torch.library.register_fake("aadl_ext::window_statistics")
    def _(window, out):  # type: ignore[no-untyped-def]
        return out.new_empty(())

    @torch.library.register_fake("aadl_ext::tsqr")
    def _(rows, append, offsets):  # type: ignore[no-untyped-def]
        columns = rows.shape[0] + int(append is not None)
        wide = double in (rows.dtype, None if append is None else append.dtype)
        return rows.new_empty(
            len(offsets) - 1, columns, columns, dtype=double if wide else torch.float32
        )

    @torch.library.register_fake("aadl_ext::solve_subspace")
    def _(metric, curvature, right_side, *_):  # type: ignore[no-untyped-def]
        systems, m = right_side.shape
        vector, scalar = right_side.new_empty(systems, m), right_side.new_empty(systems)
        rank = scalar.new_empty(systems, dtype=torch.int64)
        return vector, scalar, scalar.clone(), rank, vector.clone(), scalar.clone()

    @torch.library.register_fake("aadl_ext::solve_secants")
    def _(system, factored, ridge, tolerance):  # type: ignore[no-untyped-def]
        problems, size, _ = system.shape
        return (
            system.new_empty(problems, size - 1),
            system.new_empty(problems, dtype=torch.int64),
            system.new_empty(problems),
            system.new_empty(problems),
        )
