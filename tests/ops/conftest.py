"""All tests of this folder run on each backend that there is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aadl_ext.ops import library


@pytest.fixture(scope="module", params=["definition", "compiled"], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of the whole module, so that examples of Hypothesis share it."""
    backend: str = request.param
    if backend == "definition":
        with library.definitions_only():
            yield backend
    elif library.missing is not None:
        pytest.skip(f"no compiled library: {library.missing}")
    else:
        yield backend
