# SPDX-License-Identifier: MPL-2.0
"""Real-ESRGAN's second-order degradation with all of its stages and ranges, on clips.

One recipe is drawn for a clip. Its strengths drift slowly from frame to frame, its noise is new in
each frame, and its codecs see the clip as video. The preset `official` draws a new recipe for each
frame instead, as the released code does.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from starsr.data.media import SCALE, from_bytes, to_bytes
from starsr.degradation import codecs, kernels

MODES = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class Stage:
    """Ranges of one stage.

    Shares are probabilities, `resize` those of enlarging, shrinking and keeping the size. `sigma`
    is in pixels, `up` and `down` are factors of the size, `gaussian` is in 8-bit levels, `poisson`
    in Real-ESRGAN's scale of Poisson noise, and `jpeg` is a quality.
    """

    blur_share: float = 1.0
    sigma: tuple[float, float] = (0.2, 3.0)
    sinc_share: float = 0.1
    resize: tuple[float, float, float] = (0.2, 0.7, 0.1)
    up: tuple[float, float] = (1.0, 1.5)
    down: tuple[float, float] = (0.15, 1.0)
    noise_share: float = 1.0
    gaussian: tuple[float, float] = (1.0, 30.0)
    poisson: tuple[float, float] = (0.05, 3.0)
    gray_share: float = 0.4
    jpeg_share: float = 1.0
    jpeg: tuple[float, float] = (30.0, 95.0)
    video_share: float = 1.0


@dataclass(frozen=True)
class Preset:
    """A family of recipes with one or two stages.

    Shares are probabilities: of the final low-pass, of interlacing and of old film. `bits` is the
    range of bits a pixel of the `video` codecs. `per_frame` draws a new recipe for each frame.
    """

    stages: tuple[Stage, ...]
    final_sinc_share: float = 0.8
    bits: tuple[float, float] = (0.1, 1.0)
    video: tuple[str, ...] = codecs.VIDEO[:3]
    interlace_share: float = 0.0
    film_share: float = 0.0
    per_frame: bool = False


SECOND = Stage(
    blur_share=0.8,
    sigma=(0.2, 1.5),
    resize=(0.3, 0.4, 0.3),
    up=(1.0, 1.2),
    down=(0.3, 1.0),
    gaussian=(1.0, 25.0),
    poisson=(0.05, 2.5),
)
#: `heavy` has two stages at full strength and the bit rates of streamed video, down to a tenth of a
#: bit a pixel (144p at 100 kbit/s). `light` has one weaker stage at twice the rates. `official`
#: treats each frame on its own as the released code does, whose 10,000 to 100,000 bits a second at
#: one frame a second are some 0.2 to 2 bits a pixel of 320x180.
PRESETS = {
    "heavy": Preset((Stage(video_share=0.3), SECOND)),
    "light": Preset(
        (
            Stage(
                sigma=(0.2, 1.6),
                resize=(0.1, 0.4, 0.5),
                down=(0.4, 1.0),
                noise_share=0.6,
                gaussian=(1.0, 10.0),
                poisson=(0.05, 1.0),
                jpeg_share=0.3,
                jpeg=(60.0, 95.0),
                video_share=0.9,
            ),
        ),
        final_sinc_share=0.2,
        bits=(0.2, 2.0),
    ),
    "official": Preset(
        (Stage(), SECOND), bits=(0.17, 1.7), video=("libx264", "mpeg4"), per_frame=True
    ),
}

#: A step of a recipe. It maps clips `[F,3,h,w]` in [0,1], perhaps to another size.
Step = Callable[[Tensor], Tensor]


@dataclass
class Recipe:
    """The steps drawn for a clip, with their names for records."""

    steps: list[tuple[str, Step]] = field(default_factory=list)

    def add(self, name: str, step: Step) -> None:
        """Append a step."""
        self.steps.append((name, step))

    def __call__(self, clip: Tensor) -> Tensor:
        """Apply all steps to a clip `[F,3,h,w]` in [0,1]."""
        for _, step in self.steps:
            clip = step(clip)
        return clip


def drift(rng: np.random.Generator, frames: int, amount: float) -> np.ndarray:
    """Draw a smooth factor for each frame, within `1 - amount` to `1 + amount`."""
    phase, periods = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 1.5)
    angle = phase + periods * 2 * np.pi * np.arange(frames) / max(frames, 24)
    factors: np.ndarray = 1 + amount * rng.uniform(0, 1) * np.sin(angle)
    return factors


def resize(clip: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Resize to `size` (height, width); unlike Real-ESRGAN's own resize, with antialiasing."""
    if tuple(clip.shape[2:]) == size:
        return clip
    if mode == "area":
        return F.interpolate(clip, size=size, mode="area")
    return F.interpolate(clip, size=size, mode=mode, antialias=True, align_corners=False)


def draw_blur(rng: np.random.Generator, recipe: Recipe, frames: int, stage: Stage) -> None:
    """Add a blur."""
    if rng.random() >= stage.blur_share:
        return
    size = kernels.draw_size(rng)
    first, second = (kernels.draw(rng, size, stage.sigma, stage.sinc_share) for _ in range(2))
    # Mostly the first kernel, with a share of another one that comes and goes.
    shares = np.clip(drift(rng, frames, 0.25) - 1, 0, 1).astype(np.float32)
    share = torch.from_numpy(shares)[:, None, None]
    mixed = (1 - share) * first + share * second
    recipe.add(f"blur {size}", lambda clip: kernels.blur(clip, mixed))


def draw_resize(
    rng: np.random.Generator, recipe: Recipe, stage: Stage, size: tuple[int, int]
) -> None:
    """Add a resize to `size` (height, width) times the stage's random factor."""
    kind = rng.choice(3, p=stage.resize)
    factor = rng.uniform(*stage.up) if kind == 0 else rng.uniform(*stage.down) if kind == 1 else 1.0
    mode = str(rng.choice(MODES))
    to = max(round(size[0] * factor), 8), max(round(size[1] * factor), 8)
    recipe.add(f"resize {factor:.2f} {mode}", lambda clip: resize(clip, to, mode))


def draw_noise(rng: np.random.Generator, recipe: Recipe, frames: int, stage: Stage) -> None:
    """Add Gaussian or Poisson noise."""
    if rng.random() >= stage.noise_share:
        return
    gray = rng.random() < stage.gray_share
    strength = drift(rng, frames, 0.2).reshape(-1, 1, 1, 1).astype(np.float32)
    seed = int(rng.integers(1 << 62))
    if rng.random() < 0.5:
        sigma = rng.uniform(*stage.gaussian)
        level = sigma * strength / 255
        recipe.add(f"gaussian {sigma:.1f}", lambda clip: gaussian_noise(clip, level, gray, seed))
    else:
        scale = rng.uniform(*stage.poisson)
        scales = scale * strength
        recipe.add(f"poisson {scale:.2f}", lambda clip: poisson_noise(clip, scales, gray, seed))


def gaussian_noise(clip: Tensor, sigma: np.ndarray, gray: bool, seed: int) -> Tensor:
    """Add Gaussian noise of `sigma` `[F,1,1,1]`; if `gray`, the same to all channels."""
    shape = (clip.shape[0], 1 if gray else 3, *clip.shape[2:])
    noise = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return (clip + torch.from_numpy(noise * sigma)).clamp(0, 1)


def poisson_noise(clip: Tensor, scale: np.ndarray, gray: bool, seed: int) -> Tensor:
    """Add shot noise of 8-bit levels times `scale` `[F,1,1,1]`.

    If `gray`, it is that of the mean of the channels, and the same for all of them.
    """
    rounded = (clip.clamp(0, 1) * 255).round() / 255
    source = rounded.mean(1, keepdim=True) if gray else rounded
    counts = np.random.default_rng(seed).poisson(source.numpy() * 255).astype(np.float32) / 255
    return (clip + torch.from_numpy((counts - source.numpy()) * scale)).clamp(0, 1)


def draw_jpeg(rng: np.random.Generator, recipe: Recipe, frames: int, stage: Stage) -> None:
    """Add JPEG compression."""
    if rng.random() >= stage.jpeg_share:
        return
    quality = np.clip(rng.uniform(*stage.jpeg) * drift(rng, frames, 0.1), 5, 95)

    def compress(clip: Tensor) -> Tensor:
        return from_bytes(codecs.jpeg(to_bytes(clip), quality))

    recipe.add(f"jpeg {quality[0]:.0f}", compress)


def draw_video(rng: np.random.Generator, recipe: Recipe, preset: Preset, stage: Stage) -> None:
    """Add compression as video."""
    if rng.random() >= stage.video_share:
        return
    codec, bits = str(rng.choice(preset.video)), float(rng.uniform(*preset.bits))
    rate = int(rng.choice((15, 24, 25, 30)))

    def compress(clip: Tensor) -> Tensor:
        return from_bytes(codecs.transcode(to_bytes(clip), codec, bits=bits, rate=rate))

    recipe.add(f"{codec} {bits:.2f}", compress)


def draw_sinc(rng: np.random.Generator, recipe: Recipe, frames: int, share: float) -> None:
    """Add a low-pass."""
    if rng.random() >= share:
        return
    size = kernels.draw_size(rng)
    kernel = kernels.sinc(size, rng.uniform(np.pi / 3, np.pi))
    recipe.add(f"sinc {size}", lambda clip: kernels.blur(clip, kernel.expand(frames, -1, -1)))


def interlace(clip: Tensor) -> Tensor:
    """Take every second line from the next frame, which leaves combs on moving edges."""
    later = torch.cat([clip[1:], clip[-1:]])
    woven = clip.clone()
    woven[:, :, 1::2] = later[:, :, 1::2]
    return woven


def old_film(clip: Tensor, seed: int) -> Tensor:
    """Add flicker, an unsteady gate, scratches that last some frames, and dust of single frames."""
    rng = np.random.default_rng(seed)
    frames, _, height, width = clip.shape
    result = clip * torch.from_numpy(
        1 + 0.04 * rng.standard_normal((frames, 1, 1, 1)).astype(np.float32)
    )
    for f in range(frames):
        shift = np.rint(0.4 * rng.standard_normal(2)).astype(int).tolist()
        result[f] = torch.roll(result[f], shift, (1, 2))
        for _ in range(rng.poisson(0.5)):
            y, x, size = rng.integers(height), rng.integers(width), rng.integers(1, 4)
            result[f, :, y : y + size, x : x + size] = float(rng.random() < 0.5)
    for _ in range(rng.poisson(1.0)):
        x, start = int(rng.integers(width)), int(rng.integers(frames))
        until = start + int(rng.integers(1, 13))
        result[start:until, :, :, x] += float(rng.uniform(-0.3, 0.3))
    return result.clamp(0, 1)


def draw(rng: np.random.Generator, preset: Preset, frames: int, size: tuple[int, int]) -> Recipe:
    """Draw a recipe for clips of `frames` frames of `size` (height, width).

    Its result has a quarter of that size in each direction.
    """
    recipe, low = Recipe(), (size[0] // SCALE, size[1] // SCALE)
    if rng.random() < preset.film_share:
        seed = int(rng.integers(1 << 62))
        recipe.add("film", lambda clip: old_film(clip, seed))
    for number, stage in enumerate(preset.stages):
        draw_blur(rng, recipe, frames, stage)
        draw_resize(rng, recipe, stage, size if number == 0 else low)
        draw_noise(rng, recipe, frames, stage)
        if number + 1 < len(preset.stages):
            draw_jpeg(rng, recipe, frames, stage)
            draw_video(rng, recipe, preset, stage)
    last, mode = preset.stages[-1], str(rng.choice(MODES))

    def shrink() -> None:
        recipe.add(f"resize {mode}", lambda clip: resize(clip, low, mode))
        draw_sinc(rng, recipe, frames, preset.final_sinc_share)

    if rng.random() < 0.5:
        shrink()
        draw_jpeg(rng, recipe, frames, last)
    else:
        draw_jpeg(rng, recipe, frames, last)
        shrink()
    if rng.random() < preset.interlace_share:
        recipe.add("interlace", interlace)
    draw_video(rng, recipe, preset, last)
    return recipe


def degrade(clip: Tensor, preset: Preset, rng: np.random.Generator) -> np.ndarray:
    """Degrade a clean clip `[F,3,H,W]` in [0,1], whose sides are multiples of 4.

    Returns `[F,H/4,W/4,3]` uint8.
    """
    size = (clip.shape[2], clip.shape[3])
    if preset.per_frame:
        frames = [to_bytes(draw(rng, preset, 1, size)(frame[None])) for frame in clip]
        return np.concatenate(frames)
    return to_bytes(draw(rng, preset, len(clip), size)(clip))
