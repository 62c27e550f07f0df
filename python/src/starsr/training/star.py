# SPDX-License-Identifier: MPL-2.0
"""Training of the full network as in the paper: from a released checkpoint (VEnhancer's or STAR's), only ControlNet and LIEM
change, autoencoder and text encoder are frozen. Data are folders of pairs as `starsr-degrade` writes them: gt, lq, text."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from starsr.data.media import from_bytes, read_clip
from starsr.data.pairs import pairs_in
from starsr.ops.torch_ops import TorchOps
from starsr.models.schedule import TIMESTEPS, alphas_sigmas
from starsr.models.star import text, vae
from starsr.models.star.network import CONTROLNET, Star, StarConfig, controlnet, declared_parameters, denoiser
from starsr.export.sources import TextTower
from starsr.models.star.vae import VaeConfig
from starsr.models.weights import Weights, WeightsError
from starsr.training.losses import DfConfig, df_loss, df_weight
from starsr.training.loop import TrainingError, generator_of


@dataclass(frozen=True)
class StarOptions:
    """Clips in a batch, their frames, height and width in output pixels (legal ones: height 16 modulo 64, width 0); share of
    the clips trained without text; frames that are decoded for the DF loss; processes that read."""

    batch: int = 1
    frames: int = 32
    height: int = 720
    width: int = 1280
    null_text: float = 0.5
    decoded: int = 3
    workers: int = 1
    checkpointing: bool = True
    df: DfConfig = DfConfig()


class Pairs(Dataset):
    """`(low, high, text)` of a paired folder: a random crop of consecutive frames `[F,3,H,W]` in [0,1], the low-quality one
    enlarged to the size of the other (bilinear, as at inference), a function of `seed` and the index."""

    def __init__(self, folder: Path, options: StarOptions, seed: int) -> None:
        self.pairs, self.options, self.seed = pairs_in(folder), options, seed
        if not self.pairs:
            raise TrainingError(f"{folder} has no pairs: it needs folders gt and lq with clips of the same names")

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        generator, options = generator_of(self.seed, index), self.options

        def below(limit: int) -> int:
            return int(torch.randint(limit, (1,), generator=generator))

        pair = self.pairs[below(len(self.pairs))]
        low, high = (from_bytes(read_clip(p)) for p in (pair.low, pair.high))
        size = (options.height, options.width)
        if len(high) < options.frames or len(low) != len(high) or any(n < m for n, m in zip(high.shape[2:], size)):
            raise TrainingError(
                f"{pair.high} is {len(high)} frames of {high.shape[3]}x{high.shape[2]} ({len(low)} in {pair.low}), but "
                f"crops of {options.frames} frames of {size[1]}x{size[0]} are wanted: choose other sizes, or remove the pair"
            )
        start, y, x = (below(n - m + 1) for n, m in zip((len(high), *high.shape[2:]), (options.frames, *size)))
        frames = slice(start, start + options.frames)
        high, low = high[frames], F.interpolate(low[frames], size=tuple(high.shape[2:]), mode="bilinear")
        crop = (slice(None), slice(None), slice(y, y + size[0]), slice(x, x + size[1]))
        return low[crop], high[crop], pair.text


def initialise(config: StarConfig, weights: Weights) -> Star:
    """The networks with the weights of a checkpoint; LIEM, which VEnhancer's has not, starts at random. Only ControlNet and
    LIEM are to be trained. Raises `WeightsError` where anything else is missing."""
    wanted = declared_parameters(config)
    absent = [name for name in wanted if name not in weights and ".local" not in name]
    wrong = [name for name in wanted if name in weights and tuple(weights[name].shape) != wanted[name].shape]
    if absent or wrong:
        raise WeightsError(
            f"{weights.source} is no checkpoint to start from: {len(absent)} tensors are missing and {len(wrong)} have "
            f"another shape ({', '.join((absent + wrong)[:3])}); take VEnhancer's or STAR's on I2VGen-XL"
        )
    model = Star(config)
    state = model.state_dict()
    model.load_state_dict({name: weights[name].float() if name in weights else state[name] for name in state})
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(CONTROLNET) or ".local" in name)
    return model


class Wrapped(nn.Module):
    """`Star` with blocks recomputed for the gradient."""

    def __init__(self, star: Star, checkpointing: bool) -> None:
        super().__init__()
        self.star, self.checkpointing = star, checkpointing

    def forward(self, x, t, hint, embedding):
        """As `Star.forward`."""
        ops = TorchOps(dict(self.star.named_parameters()), checkpointing=self.checkpointing)
        controls = controlnet(ops, x, t, hint, embedding, self.star.config)
        return denoiser(ops, x, t, embedding, controls, self.star.config)


class StarTask:
    """`loop.Task` of the full network. `frozen` are the autoencoder's weights by name."""

    def __init__(
        self,
        folder: Path,
        star: Star,
        frozen: dict[str, Tensor],
        vae_config: VaeConfig,
        tower: TextTower,
        options: StarOptions,
        seed: int,
        device: torch.device,
    ) -> None:
        if options.height % 64 != 16 or options.width % 64 or options.height < 80:
            raise TrainingError(
                f"crops of {options.width}x{options.height} do not fit the networks: the height must be 16 modulo 64 and at least "
                "80, the width a multiple of 64"
            )
        self.data = Pairs(folder, options, seed)
        self.module = Wrapped(star, options.checkpointing).to(device)
        self.vae, self.vae_config = TorchOps({name: t.to(device) for name, t in frozen.items()}), vae_config
        self.tower, self.options, self.seed, self.device = tower, options, seed, device
        self.alphas, self.sigmas = (torch.as_tensor(v, dtype=torch.float32, device=device) for v in alphas_sigmas())
        self.known: dict[str, Tensor] = {}

    def batches(self, start: int, end: int) -> Iterator:
        """`(low, high [B,F,3,H,W], texts)` of the iterations."""
        batch = self.options.batch
        loader = DataLoader(Subset(self.data, range(batch * start, batch * end)), batch, num_workers=self.options.workers)
        for low, high, texts in loader:
            yield low.to(self.device), high.to(self.device), list(texts)

    def embedding(self, words: str) -> Tensor:
        """Embedding `[77,D]` of a text, without a prompt's suffix."""
        if words not in self.known:
            self.known[words] = self.tower.embed(torch.from_numpy(text.tokenize(words))[None])[0]
        return self.known[words].to(self.device)

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """Latents `[B,4,F,h,w]` (posterior means) of pixels `[B,F,3,H,W]` in [0,1], frame by frame."""
        frames = [vae.encode(self.vae, frame[None] * 2 - 1, self.vae_config)[0] for frame in pixels.flatten(0, 1)]
        return torch.cat(frames).unflatten(0, pixels.shape[:2]).transpose(1, 2)

    def loss(self, module, batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """`L_v + b(t) L_DF` (paper, equation 2); `L_DF` reaches the networks through the decoder."""
        (low, high, texts), options = batch, self.options
        hint, clean = self.latents(low), self.latents(high)
        count, frames = len(low), clean.shape[2]
        t = torch.randint(0, TIMESTEPS, (count,), generator=generator)
        silent = torch.rand(count, generator=generator) < options.null_text
        embedding = torch.stack([self.embedding("" if quiet else words) for quiet, words in zip(silent, texts)])
        noise = torch.randn(clean.shape, generator=generator).to(self.device)
        first = int(torch.randint(max(frames - options.decoded, 0) + 1, (1,), generator=generator))
        t = t.to(self.device)
        a, s = (table[t].reshape(-1, 1, 1, 1, 1) for table in (self.alphas, self.sigmas))
        x = a * clean + s * noise
        v = module(x, t, hint, embedding)
        velocity = (v.float() - (a * noise - s * clean)).square().mean((1, 2, 3, 4))
        if options.df.separation == "none":
            return velocity.mean(), {"v": velocity.mean()}
        # A group of frames, as decoding all would take several times the memory of the networks.
        part = (a * x - s * v)[:, :, first : first + options.decoded]
        pixels = torch.stack([vae.decode(self.vae, clip.transpose(0, 1), self.vae_config) for clip in part]) * 0.5 + 0.5
        target = high[:, first : first + options.decoded]
        frequency = df_weight(t, options.df) * df_loss(pixels, target, t, options.df)
        return (velocity + frequency).mean(), {"v": velocity.mean(), "df": frequency.mean()}

    def sample(self, module) -> None:
        """None: a picture takes a whole sampling, which `starsr.models.star.pipeline` does."""
        return None
