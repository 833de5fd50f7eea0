"""Shared by the benchmarks: plots on disk.

python benchmarks/pictures.py FILE.png ...    makes pictures smaller
"""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image


def draw(figure: Figure, path: Path) -> None:
    """As PNG of few colours, a fifth of the bytes."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    with Image.open(buffer) as image:
        few_colours(image).save(path, optimize=True)


def few_colours(image: Image.Image) -> Image.Image:
    """The curves' colours, black, white and the 60 most common ones in place of all others."""
    pixels = np.asarray(image.convert("RGB")).astype(int)
    curves = [to_rgb(f"C{index}") for index in range(10)] + [(0, 0, 0), (1, 1, 1)]
    colours, places, counts = np.unique(
        pixels.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True
    )
    palette = np.concatenate([np.rint(255 * np.array(curves)), colours[np.argsort(-counts)[:60]]])
    distances = ((colours[:, None] - palette) ** 2).sum(axis=-1)
    made = Image.fromarray(distances.argmin(axis=1)[places].reshape(pixels.shape[:2]).astype("u1"))
    made.putpalette(palette.astype("u1").tobytes())
    return made


if __name__ == "__main__":
    for name in sys.argv[1:]:
        with Image.open(name) as picture:
            small = few_colours(picture)
        small.save(name, optimize=True)
