"""Transformer layers with reusable keys and values: a prompt is encoded once per request.

Knows tensors. Does not know words, tries or any one model. Pre-norm, GELU, no dropout. Shape
suffixes: B batch, T target, S source, D width, H heads, K D/H.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention whose keys and values are computed separately from its queries."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def keys_values(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, S, K] of the source."""
        return self._split(self.key(x_BSD)), self._split(self.value(x_BSD))

    def forward(
        self, x_BTD: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """float32 [B, T, D]. `bias` is added to the scores: 0 for visible sources, else -1e9.

        Keys of batch 1 serve every row of a larger batch (a beam under one prompt).
        """
        q_BHTK = self._split(self.query(x_BTD))
        scores_BHTS = q_BHTK @ k_BHSK.transpose(-1, -2) * self.scale
        if bias is not None:
            scores_BHTS = scores_BHTS + bias
        mixed_BHTK = scores_BHTS.softmax(dim=-1) @ v_BHSK
        return self.out(mixed_BHTK.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, x_BSD: Tensor) -> Tensor:
        batch, length, width = x_BSD.shape
        return x_BSD.view(batch, length, self.heads, width // self.heads).transpose(1, 2)


class FeedForward(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )


class EncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.feed_forward = FeedForward(width)

    def forward(self, x_BSD: Tensor, bias: Tensor) -> Tensor:
        normed = self.norm(x_BSD)
        x_BSD = x_BSD + self.attention(normed, *self.attention.keys_values(normed), bias)
        return x_BSD + self.feed_forward(x_BSD)  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Self-attention over the written words, cross-attention over the prompt."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.cross_norm = nn.LayerNorm(width)
        self.cross = Attention(width, heads)
        self.feed_forward = FeedForward(width)

    def forward(
        self,
        x_BTD: Tensor,
        past: tuple[Tensor, Tensor] | None,
        prompt: tuple[Tensor, Tensor],
        prompt_bias: Tensor,
        causal: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The layer's output [B, T, D] and its keys and values, including those of `past`."""
        normed = self.norm(x_BTD)
        keys, values = self.attention.keys_values(normed)
        if past is not None:
            keys, values = torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
        x_BTD = x_BTD + self.attention(normed, keys, values, causal)
        x_BTD = x_BTD + self.cross(self.cross_norm(x_BTD), *prompt, prompt_bias)
        return x_BTD + self.feed_forward(x_BTD), (keys, values)


def causal_bias(length: int) -> Tensor:
    """float32 [T, T]: 0 up to the target, -1e9 after it."""
    return torch.full((length, length), -1e9).triu(1)
