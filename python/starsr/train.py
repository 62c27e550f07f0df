# SPDX-License-Identifier: MPL-2.0
"""Trains the nano networks. Stops and resumes at any time; one checkpoint file holds everything."""

import argparse
import copy
import math
import os
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from starsr.data import Clips
from starsr.losses import df_loss, df_weight, grid_loss, v_loss
from starsr.nano.network import CHANNELS, Nano, decode, encode
from starsr.ops.torch_ops import TorchOps
from starsr.resize import bicubic
from starsr.schedule import T_START, alphas_sigmas


class Pool:
    """The latest clips of a stream, from which crops are drawn: each clip costs a codec run and serves many crops."""

    def __init__(self, stream, size: int, generator: torch.Generator) -> None:
        self.stream, self.size, self.generator = iter(stream), size, generator
        self.clips: list = []

    def _below(self, limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=self.generator))

    def batch(self, batch: int, frames: int, side: int, fresh: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`(low [B,F,3,side,side], high [B,F,3,4*side,4*side])` in [0,1] after taking in `fresh` clips."""
        for _ in range(max(fresh, batch - len(self.clips))):
            clip = next(self.stream)
            if len(self.clips) < self.size:
                self.clips.append(clip)
            else:
                self.clips[self._below(self.size)] = clip
        pairs = [self._crop(frames, side) for _ in range(batch)]
        return tuple(torch.stack(part).permute(0, 1, 4, 2, 3).float() / 255 for part in zip(*pairs))

    def _crop(self, frames: int, side: int):
        low, high = self.clips[self._below(len(self.clips))]
        f, y, x = (self._below(full - part + 1) for full, part in zip(low.shape[:3], (frames, side, side)))
        low = low[f : f + frames, y : y + side, x : x + side]
        high = high[f : f + frames, 4 * y : 4 * (y + side), 4 * x : 4 * (x + side)]
        flips = [axis for axis in (0, 1, 2) if self._below(2)]
        low, high = low.flip(flips), high.flip(flips)
        return (low.transpose(1, 2), high.transpose(1, 2)) if self._below(2) else (low, high)


def coefficient_deviation(pool: Pool) -> torch.Tensor:
    """Standard deviation `[48]` of each DCT coefficient over clean clips."""
    high = torch.cat([pool.batch(8, 1, 32, 8)[1].flatten(0, 1) for _ in range(16)])
    latents = encode(TorchOps({}), high * 2 - 1, torch.ones(CHANNELS).numpy())
    return latents.std((0, 2, 3)).clamp(min=1e-3)


def to_latents(pixels: torch.Tensor, deviation) -> torch.Tensor:
    """Latents `[B,48,F,h,w]` of pixels `[B,F,3,H,W]` in [0,1]."""
    latents = encode(TorchOps({}), pixels.flatten(0, 1) * 2 - 1, deviation)
    return latents.unflatten(0, pixels.shape[:2]).transpose(1, 2)


def to_pixels(latents: torch.Tensor, deviation) -> torch.Tensor:
    """Inverse of `to_latents`."""
    frames = latents.transpose(1, 2)
    pixels = decode(TorchOps({}), frames.flatten(0, 1), deviation).unflatten(0, frames.shape[:2])
    return pixels * 0.5 + 0.5


def objective(model: Nano, low, high, deviation, alphas, sigmas, generator, start_share: float):
    """Loss and its parts for pixels `low`, `high` (see `Pool.batch`). A share of the samples is at the first timestep
    of inference with the noised low-quality latents, as inference starts there; the rest noises the clean ones."""
    batch = low.shape[0]
    hint = to_latents(bicubic(low).clamp(0, 1), deviation)
    clean = to_latents(high, deviation)
    at_start = torch.rand(batch, generator=generator) < start_share
    t = torch.where(at_start, T_START, torch.randint(0, T_START + 1, (batch,), generator=generator))
    at_start, t = at_start.to(low.device), t.to(low.device)
    a, s = (table[t].reshape(-1, 1, 1, 1, 1) for table in (alphas, sigmas))
    noise = torch.randn(clean.shape, generator=generator).to(low.device)
    x = a * torch.where(at_start.reshape(-1, 1, 1, 1, 1), hint, clean) + s * noise
    v = model(x, t, hint)
    predicted = a * x - s * v
    pixels = to_pixels(predicted, deviation)
    velocity = v_loss(v, (a * x - clean) / s, s.flatten())
    frequency = df_weight(t) * df_loss(pixels, high, t)
    pixel = (((pixels - high) ** 2 + 1e-6).sqrt()).mean((1, 2, 3, 4))
    grid = grid_loss(pixels, high)
    loss = (0.25 * velocity + 8 * pixel + frequency + 400 * grid).mean()
    start = pixels[at_start] if at_start.any() else pixels
    reference = high[at_start] if at_start.any() else high
    upscaled = bicubic(low).clamp(0, 1)
    upscaled = upscaled[at_start] if at_start.any() else upscaled
    errors = [(picture - reference).square().mean((1, 2, 3, 4)).clamp(min=1e-7) for picture in (upscaled, start)]
    gain = 10 * torch.log10(errors[0] / errors[1])
    return loss, {"v": velocity.mean(), "pixel": pixel.mean(), "df": frequency.mean(), "grid": 1e6 * grid.mean(), "dB": gain.mean()}


def learning_rate(progress: float, peak: float) -> float:
    """One cycle: linear warm-up over the first twentieth, then a cosine to a hundredth of the peak."""
    if progress < 0.05:
        return peak * (0.1 + 0.9 * progress / 0.05)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - 0.05) / 0.95)))


def save(path: Path, state: dict) -> None:
    """Writes a checkpoint so that an interrupted write leaves the previous one."""
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    os.replace(temporary, path)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m starsr.train", description=__doc__)
    parser.add_argument("--media", type=Path, required=True, help="folder with photographs and video to learn from")
    parser.add_argument("--checkpoint", type=Path, required=True, help="file to resume from and to save to")
    parser.add_argument("--minutes", type=float, default=60, help="training time in all, resumed runs counted in")
    parser.add_argument("--batch", type=int, default=4, help="clips in a batch")
    parser.add_argument("--frames", type=int, default=3, help="frames of a clip")
    parser.add_argument("--side", type=int, default=32, help="side of a crop in low-resolution pixels, times 32")
    parser.add_argument("--rate", type=float, default=8e-4, help="peak learning rate")
    parser.add_argument("--average", type=float, default=0.999, help="decay of the averaged weights")
    parser.add_argument("--start-share", type=float, default=0.7, help="share of samples at the first timestep")
    parser.add_argument("--pool", type=int, default=800, help="clips to keep for crops")
    parser.add_argument("--fresh", type=int, default=1, help="new clips in each iteration")
    parser.add_argument("--workers", type=int, default=1, help="processes that make clips")
    parser.add_argument("--threads", type=int, default=2, help="threads to compute with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def main() -> None:
    options = arguments().parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    generator = torch.Generator().manual_seed(options.seed)
    torch.manual_seed(options.seed)
    model = Nano()
    resumed = torch.load(options.checkpoint, weights_only=True) if options.checkpoint.exists() else None
    iteration, elapsed = (resumed["iteration"], resumed["elapsed"]) if resumed else (0, 0.0)
    clips = Clips(options.media, seed=options.seed + iteration)
    pool = Pool(DataLoader(clips, batch_size=None, num_workers=options.workers, prefetch_factor=8), options.pool, generator)
    model.deviation = resumed["model"]["deviation"] if resumed else coefficient_deviation(pool)
    if resumed:
        model.load_state_dict(resumed["model"])
    model.to(device)
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate, betas=(0.9, 0.999), weight_decay=1e-4)
    if resumed:
        average.load_state_dict(resumed["average"])
        optimizer.load_state_dict(resumed["optimizer"])
    deviation = model.deviation.cpu().numpy()
    alphas, sigmas = (torch.as_tensor(table, dtype=torch.float32, device=device) for table in alphas_sigmas())

    def checkpoint():
        save(
            options.checkpoint,
            {
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "iteration": iteration,
                "elapsed": elapsed,
                "options": {k: str(v) for k, v in vars(options).items()},
            },
        )

    parts: dict[str, float] = {}
    saved = begun = time.monotonic()
    while elapsed < 60 * options.minutes:
        low, high = (part.to(device) for part in pool.batch(options.batch, options.frames, options.side, options.fresh))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(elapsed / (60 * options.minutes), options.rate)
        loss, now = objective(model, low, high, deviation, alphas, sigmas, generator, options.start_share)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if torch.isfinite(norm):
            optimizer.step()
        decay = min(options.average, (iteration + 1) / (iteration + 10))
        with torch.no_grad():
            for target, source in zip(average.parameters(), model.parameters()):
                target.lerp_(source, 1 - decay)
        iteration += 1
        clock = time.monotonic()
        elapsed, begun = elapsed + clock - begun, clock
        for name, value in now.items():
            parts[name] = 0.99 * parts.get(name, value.item()) + 0.01 * value.item()
        if iteration % 50 == 0:
            figures = " ".join(f"{name} {value:.4f}" for name, value in parts.items())
            print(f"{iteration} {elapsed / 60:.1f} min {figures} gradient {norm:.2f}", flush=True)
        if clock - saved > 120:
            checkpoint()
            saved = clock
    checkpoint()


if __name__ == "__main__":
    main()
