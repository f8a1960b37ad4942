"""The query recommender's network: 2 + 2 transformer layers and a gate per pointer.

Knows tensors. Does not know texts, tries or training. Shape suffixes as in
`models.layers.transformer`; P prompt length, V words, J pointers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from models.generation.config import GeneratorSize
from models.generation.prompt import BUDGET, SEGMENTS, Prompt, stack_prompts
from models.generation.words import MAX_WORDS, PAD
from models.layers.decode import DecoderState
from models.layers.pointers import POINTERS
from models.layers.transformer import DecoderLayer, EncoderLayer, causal_bias
from models.release.bundle import ReleaseError

WEIGHTS_FILE = "weights.pt"  # tensors only, read with `weights_only=True`; serving reads the graphs


class OneBarNetwork(nn.Module):
    """Encodes a prompt once, then writes a query word by word."""

    def __init__(self, size: GeneratorSize) -> None:
        super().__init__()
        self.size = size
        self.word = _embedding(size.words, size.width)
        self.item = _embedding(size.items + 1, size.width)
        self.segment = _embedding(SEGMENTS, size.width)
        self.place = _embedding(max(BUDGET.values()), size.width)
        self.step = _embedding(MAX_WORDS + 1, size.width)
        self.encoder = nn.ModuleList(
            EncoderLayer(size.width, size.heads) for _ in range(size.layers)
        )
        self.decoder = nn.ModuleList(
            DecoderLayer(size.width, size.heads) for _ in range(size.layers)
        )
        self.norm = nn.LayerNorm(size.width)
        self.gates = nn.Linear(size.width, len(POINTERS))
        nn.init.zeros_(self.gates.weight)
        nn.init.constant_(self.gates.bias, -0.5)  # softplus: pointers start at about 0.47 each

    def read(
        self, word_BP: Tensor, segment_BP: Tensor, place_BP: Tensor, item_B: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encodes a prompt.

        int64 [B, P] each and item_B int64 [B] -> keys and values float32 [L, B, H, P, K] for the
        decoder's cross-attention, and the mask's bias [B, 1, 1, P].
        """
        first = segment_BP == 0
        x_BPD = self.word(word_BP) + self.segment(segment_BP) + self.place(place_BP)
        x_BPD = x_BPD + first.unsqueeze(-1) * self.item(item_B).unsqueeze(1)
        hidden = (word_BP == PAD) & ~first
        bias = hidden.to(x_BPD.dtype)[:, None, None, :] * -1e9
        for layer in self.encoder:
            x_BPD = layer(x_BPD, bias)
        pairs = [layer.cross.keys_values(x_BPD) for layer in self.decoder]  # type: ignore[union-attr, operator]
        return torch.stack([k for k, _ in pairs]), torch.stack([v for _, v in pairs]), bias

    def write(
        self,
        word_BT: Tensor,
        step_T: Tensor,
        prompt: tuple[Tensor, Tensor, Tensor],
        past: tuple[Tensor, Tensor] | None,
        causal: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Hidden [B, T, D], gates [B, T, J], and all keys and values [L, B, H, T', K]; float32."""
        x_BTD = self.word(word_BT) + self.step(step_T)
        keys, values = [], []
        for n, layer in enumerate(self.decoder):
            before = None if past is None else (past[0][n], past[1][n])
            x_BTD, (k, v) = layer(x_BTD, before, (prompt[0][n], prompt[1][n]), prompt[2], causal)
            keys.append(k)
            values.append(v)
        hidden_BTD = self.norm(x_BTD)
        gates = softplus(self.gates(hidden_BTD))
        return hidden_BTD, gates, torch.stack(keys), torch.stack(values)

    def teacher_forced(self, prompt: Sequence[Tensor], word_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden and gates at every position of known queries int64 [B, T], in one pass."""
        length = word_BT.shape[1]
        steps = torch.arange(length)
        hidden, gates, _, _ = self.write(
            word_BT, steps, self.read(*prompt), None, causal_bias(length)
        )
        return hidden, gates


def _embedding(rows: int, width: int) -> nn.Embedding:
    embedding = nn.Embedding(rows, width)
    nn.init.normal_(embedding.weight, std=0.05)
    return embedding


def write_weights(network: OneBarNetwork, folder: Path) -> None:
    """Writes the network's size and state."""
    torch.save({"size": asdict(network.size), "state": network.state_dict()}, folder / WEIGHTS_FILE)


def read_network(folder: Path) -> OneBarNetwork:
    """The network of a bundle.

    Raises `ReleaseError`: the bundle is older than this file, or of another architecture.
    """
    retrain = "`tidemill models train queries` makes one that can be updated"
    if not (folder / WEIGHTS_FILE).is_file():
        raise ReleaseError(f"the queries in {folder} have no weights: {retrain}")
    stored = torch.load(folder / WEIGHTS_FILE, weights_only=True)
    try:
        network = OneBarNetwork(GeneratorSize(**stored["size"]))
        network.load_state_dict(stored["state"])
    except (RuntimeError, TypeError) as error:
        raise ReleaseError(f"the queries in {folder} differ in architecture: {retrain}") from error
    return network.eval()


class TorchNetwork:
    """The torch network as a `recommend.QueryNetwork`: the reference for the exported one."""

    def __init__(self, network: OneBarNetwork) -> None:
        self._network = network.eval()

    @torch.no_grad()
    def read(self, prompt: Prompt) -> tuple[np.ndarray, ...]:
        tensors = map(torch.from_numpy, stack_prompts([prompt]))
        return tuple(kept.numpy() for kept in self._network.read(*tensors))

    @torch.no_grad()
    def write(
        self, kept: tuple[np.ndarray, ...], word: np.ndarray, step: int, past: DecoderState | None
    ) -> DecoderState:
        keys, values, bias = (torch.from_numpy(array) for array in kept)
        before = None
        if past is not None:
            before = (torch.from_numpy(past.keys), torch.from_numpy(past.values))
        outputs = self._network.write(
            torch.from_numpy(word)[:, None],
            torch.tensor([step]),
            (keys, values, bias),
            before,
            None,
        )
        hidden, gates, k, v = (output.numpy() for output in outputs)
        return DecoderState(hidden[:, 0], gates[:, 0], k, v)


class _Reader(nn.Module):
    def __init__(self, network: OneBarNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, word_BP: Tensor, segment_BP: Tensor, place_BP: Tensor, item_B: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.network.read(word_BP, segment_BP, place_BP, item_B)


class _Writer(nn.Module):
    def __init__(self, network: OneBarNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        word_B: Tensor,
        step_T: Tensor,
        prompt_keys: Tensor,
        prompt_values: Tensor,
        prompt_bias: Tensor,
        past_keys: Tensor,
        past_values: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        prompt = (prompt_keys, prompt_values, prompt_bias)
        past = (past_keys, past_values)
        hidden, gates, keys, values = self.network.write(
            word_B[:, None], step_T, prompt, past, None
        )
        return hidden[:, 0], gates[:, 0], keys, values


def export_onnx(network: OneBarNetwork, reader_path: str, writer_path: str) -> None:
    """Writes two ONNX graphs: the prompt's pass and one word's pass."""
    size, beams, past_words = network.size, 3, 2
    head = size.width // size.heads
    network = network.eval()
    sample = torch.zeros(1, 5, dtype=torch.int64)
    prompt_in = (sample, sample, sample, torch.zeros(1, dtype=torch.int64))
    with torch.no_grad():
        prompt = network.read(*prompt_in)
    past = torch.zeros(size.layers, beams, size.heads, past_words, head)
    words_in = {name: {1: "P"} for name in _PROMPT[:3]}
    kept = {"prompt_keys": {3: "P"}, "prompt_values": {3: "P"}, "prompt_bias": {3: "P"}}
    past_axes = {name: {1: "B", 3: "T"} for name in ("past_keys", "past_values")}
    out_axes = {name: {1: "B", 3: "S"} for name in ("keys", "values")}
    beam = {name: {0: "B"} for name in ("word", "hidden", "gates")}
    _export(_Reader(network), prompt_in, reader_path, _PROMPT, _KEPT, words_in | kept)
    _export(
        _Writer(network),
        (torch.zeros(beams, dtype=torch.int64), torch.tensor([past_words]), *prompt, past, past),
        writer_path,
        ["word", "step", *_KEPT, "past_keys", "past_values"],
        ["hidden", "gates", "keys", "values"],
        beam | kept | past_axes | out_axes,
    )


_PROMPT = ["word", "segment", "place", "video"]
_KEPT = ["prompt_keys", "prompt_values", "prompt_bias"]


def _export(
    module: nn.Module,
    arguments: tuple[Tensor, ...],
    path: str,
    inputs: list[str],
    outputs: list[str],
    axes: dict[str, dict[int, str]],
) -> None:
    torch.onnx.export(
        module,
        arguments,
        path,
        input_names=inputs,
        output_names=outputs,
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )
