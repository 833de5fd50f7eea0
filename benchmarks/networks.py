"""Networks of the size that people train.

ResNet-50 (He et al. 2016) with the stride in the 3 x 3 convolutions: 25,557,032 parameters; and a
causal transformer of the size of GPT-2 small (Radford et al. 2019): 124,439,808 parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps the size but for its stride, normalised."""
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    """Narrow, convolve, widen; added to the input, which is projected where shapes differ."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.residual = nn.Sequential(
            convolution(inputs, width, 1),
            nn.ReLU(),
            convolution(width, width, 3, stride),
            nn.ReLU(),
            convolution(width, outputs, 1),
        )
        alike = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if alike else convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, H, W]`` to ``[B, 4 width, H / stride, W / stride]``."""
        total: Tensor = self.residual(x) + self.shortcut(x)
        return total.relu()


def resnet50(width: int = 64, classes: int = 1000) -> nn.Sequential:
    """From images ``[B, 3, H, W]`` to ``[B, classes]``; other widths than 64 are for tests."""
    layers = [convolution(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 0 else 1
            layers.append(Bottleneck(inputs, width << stage, stride))
            inputs = 4 * width << stage
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
    return nn.Sequential(*layers, *head)


class Transformer(nn.Module):
    """Predicts the next token; the embedding of tokens serves as the output layer, too."""

    def __init__(
        self,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        tokens: int = 50257,
        length: int = 1024,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        nn.init.normal_(self.embedding.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, nn.functional.gelu, batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(width)
        self.layers = nn.TransformerEncoder(layer, layers, norm, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, T]`` int64 to ``[B, T, tokens]``."""
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        x = self.embedding(tokens) + self.position[:length]
        states: Tensor = self.layers(x, mask=mask, is_causal=True)
        return states @ self.embedding.weight.T
