# SPDX-License-Identifier: MPL-2.0
"""Training of the full network as in the paper, from a released checkpoint.

Only ControlNet and LIEM change; the rest of the denoiser, the autoencoder and the text encoder are
frozen. The data are folders of pairs as `starsr-degrade` writes them: gt, lq and text.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from starsr.data.media import from_bytes, read_clip
from starsr.data.pairs import pairs_in
from starsr.export.sources import TextTower
from starsr.models.schedule import TIMESTEPS, alphas_sigmas
from starsr.models.star import text, vae
from starsr.models.star.network import (
    CONTROLNET,
    Star,
    StarConfig,
    controlnet,
    declared_parameters,
    denoiser,
)
from starsr.models.star.vae import VaeConfig
from starsr.models.weights import Weights, WeightsError
from starsr.ops.torch_ops import TorchOps
from starsr.training.loop import TrainingError, generator_of
from starsr.training.losses import DF, DfConfig, df_loss, df_weight

#: Low-quality and clean clips `[B,F,3,H,W]` in [0,1], and their texts.
Batch = tuple[Tensor, Tensor, list[str]]


@dataclass(frozen=True)
class StarOptions:
    """Settings of the training.

    A batch holds `batch` clips of `frames` frames and `height` x `width` output pixels (legal sizes
    are 16 modulo 64 and 0 modulo 64), read by `workers` processes. `null_text` is the share of the
    clips without text, `decoded` the number of frames that are decoded for the DF loss.
    """

    batch: int = 1
    frames: int = 32
    height: int = 720
    width: int = 1280
    null_text: float = 0.5
    decoded: int = 3
    workers: int = 1
    checkpointing: bool = True
    df: DfConfig = DF


class Pairs(Dataset[tuple[Tensor, Tensor, str]]):
    """`(low, high, text)` of a paired folder, a function of `seed` and the index.

    Both clips are the same random crop of consecutive frames `[F,3,H,W]` in [0,1]; the low-quality
    one is enlarged to the size of the other (bilinear, as at inference).
    """

    def __init__(self, folder: Path, options: StarOptions, seed: int) -> None:
        self.pairs, self.options, self.seed = pairs_in(folder), options, seed
        if not self.pairs:
            raise TrainingError(
                f"{folder} has no pairs: it needs folders gt and lq with clips of the same names"
            )

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        generator, options = generator_of(self.seed, index), self.options

        def below(limit: int) -> int:
            return int(torch.randint(limit, (1,), generator=generator))

        pair = self.pairs[below(len(self.pairs))]
        low, high = (from_bytes(read_clip(p)) for p in (pair.low, pair.high))
        wanted = (options.frames, options.height, options.width)
        found = (len(high), *high.shape[2:])
        if len(low) != len(high) or any(n < m for n, m in zip(found, wanted, strict=True)):
            raise TrainingError(
                f"{pair.high} is {found[0]} frames of {found[2]}x{found[1]} ({len(low)} in "
                f"{pair.low}), but crops of {wanted[0]} frames of {wanted[2]}x{wanted[1]} are "
                "wanted: choose other sizes, or remove the pair"
            )
        start, y, x = (below(n - m + 1) for n, m in zip(found, wanted, strict=True))
        high, low = high[start : start + options.frames], low[start : start + options.frames]
        low = F.interpolate(low, size=(high.shape[2], high.shape[3]), mode="bilinear")
        low, high = (
            clip[:, :, y : y + options.height, x : x + options.width] for clip in (low, high)
        )
        return low, high, pair.text


def initialise(config: StarConfig, weights: Weights) -> Star:
    """Return the networks with the weights of a checkpoint, ready to train ControlNet and LIEM.

    If the checkpoint lacks LIEM, as VEnhancer's does, LIEM starts at random. Raises `WeightsError`
    if anything else is missing.
    """
    wanted = declared_parameters(config)
    absent = [name for name in wanted if name not in weights and ".local" not in name]
    wrong = [
        name
        for name in wanted
        if name in weights and tuple(weights[name].shape) != wanted[name].shape
    ]
    if absent or wrong:
        raise WeightsError(
            f"{weights.source} is no checkpoint to start from: {len(absent)} tensors are missing "
            f"and {len(wrong)} have another shape ({', '.join((absent + wrong)[:3])}); take "
            "VEnhancer's or STAR's on I2VGen-XL"
        )
    model = Star(config)
    state = model.state_dict()
    model.load_state_dict(
        {name: weights[name].float() if name in weights else state[name] for name in state}
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(CONTROLNET) or ".local" in name)
    return model


class Wrapped(nn.Module):
    """`Star` with blocks that are recomputed for the gradient if `checkpointing`."""

    def __init__(self, star: Star, checkpointing: bool) -> None:
        super().__init__()
        self.star, self.checkpointing = star, checkpointing

    def forward(self, x: Tensor, t: Tensor, hint: Tensor, embedding: Tensor) -> Tensor:
        """Predict `v` as `Star.forward` does."""
        parameters = dict(self.star.named_parameters())
        ops = TorchOps(parameters, checkpointing=self.checkpointing)
        controls = controlnet(ops, x, t, hint, embedding, self.star.config)
        return denoiser(ops, x, t, embedding, controls, self.star.config)


class StarTask:
    """The `loop.Task` of the full network. `frozen` are the autoencoder's weights by name."""

    module: nn.Module

    def __init__(
        self,
        folder: Path,
        star: Star,
        frozen: Mapping[str, Tensor],
        vae_config: VaeConfig,
        tower: TextTower,
        options: StarOptions,
        seed: int,
        device: torch.device,
    ) -> None:
        if options.height % 64 != 16 or options.width % 64 or options.height < 80:
            raise TrainingError(
                f"crops of {options.width}x{options.height} do not fit the networks: the height "
                "must be 16 modulo 64 and at least 80, the width a multiple of 64"
            )
        self.data = Pairs(folder, options, seed)
        self.module = Wrapped(star, options.checkpointing).to(device)
        self.vae = TorchOps({name: tensor.to(device) for name, tensor in frozen.items()})
        self.vae_config = vae_config
        self.tower, self.options, self.seed, self.device = tower, options, seed, device
        self.alphas, self.sigmas = (
            torch.as_tensor(v, dtype=torch.float32, device=device) for v in alphas_sigmas()
        )
        self.known: dict[str, Tensor] = {}

    def batches(self, start: int, end: int) -> Iterator[Batch]:
        """Yield the batches of the iterations."""
        batch = self.options.batch
        data = Subset(self.data, range(batch * start, batch * end))
        for low, high, texts in DataLoader(data, batch, num_workers=self.options.workers):
            yield low.to(self.device), high.to(self.device), list(texts)

    def embedding(self, words: str) -> Tensor:
        """Return the embedding `[77,D]` of a text, without the suffix of prompts."""
        if words not in self.known:
            self.known[words] = self.tower.embed(torch.from_numpy(text.tokenize(words))[None])[0]
        return self.known[words].to(self.device)

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """Encode pixels `[B,F,3,H,W]` in [0,1] frame by frame.

        Returns posterior means `[B,4,F,h,w]`.
        """
        frames = [
            vae.encode(self.vae, frame[None] * 2 - 1, self.vae_config)[0]
            for frame in pixels.flatten(0, 1)
        ]
        return torch.cat(frames).unflatten(0, pixels.shape[:2]).transpose(1, 2)

    def loss(
        self, module: nn.Module, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return `L_v + b(t) L_DF` (paper, equation 2), and figures for the log.

        `L_DF` reaches the networks through the decoder.
        """
        (low, high, texts), options = batch, self.options
        hint, clean = self.latents(low), self.latents(high)
        count, frames = len(low), clean.shape[2]
        t = torch.randint(0, TIMESTEPS, (count,), generator=generator)
        silent = torch.rand(count, generator=generator) < options.null_text
        embedding = torch.stack(
            [
                self.embedding("" if quiet else words)
                for quiet, words in zip(silent, texts, strict=True)
            ]
        )
        noise = torch.randn(clean.shape, generator=generator).to(self.device)
        most = max(frames - options.decoded, 0)
        first = int(torch.randint(most + 1, (1,), generator=generator))
        t = t.to(self.device)
        a, s = (table[t].reshape(-1, 1, 1, 1, 1) for table in (self.alphas, self.sigmas))
        x = a * clean + s * noise
        v = module(x, t, hint, embedding)
        velocity = (v.float() - (a * noise - s * clean)).square().mean((1, 2, 3, 4))
        if options.df.separation == "none":
            return velocity.mean(), {"v": velocity.mean()}
        # A few frames only: decoding all would take several times the memory of the networks.
        part = (a * x - s * v)[:, :, first : first + options.decoded]
        decoded = [vae.decode(self.vae, clip.transpose(0, 1), self.vae_config) for clip in part]
        pixels = torch.stack(decoded) * 0.5 + 0.5
        target = high[:, first : first + options.decoded]
        frequency = df_weight(t, options.df) * df_loss(pixels, target, t, options.df)
        return (velocity + frequency).mean(), {"v": velocity.mean(), "df": frequency.mean()}

    def sample(self, module: nn.Module) -> None:
        """Return no picture: one takes a whole sampling, which `models.star.pipeline` does."""
