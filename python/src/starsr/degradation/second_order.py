# SPDX-License-Identifier: MPL-2.0
"""The second-order degradation of Real-ESRGAN with every stage and range of SPEC D, on clips.

One recipe is drawn for a clip; its strengths drift slowly from frame to frame, its noise is new in each, and its codecs see the
clip as video. The preset `official` draws a new recipe for each frame instead, as the released code does.
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
    """Ranges of one stage. Shares are probabilities; `sigma` is in pixels, `up` and `down` are factors of the size, noise in
    levels of 8 bits (`gaussian`) or in Real-ESRGAN's scale of Poisson noise, `jpeg` a quality."""

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
    """A family of recipes: one or two stages, the share of the final low-pass, the bits a pixel of the video codecs, and the
    shares of interlacing and of old film. `per_frame` draws anew for each frame."""

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
#: Two stages at full strength, whose bit rates are those that video of such sizes is streamed with, down to a tenth of a bit a
#: pixel (144p at 100 kbit/s); one stage of less, at twice the rates; and what the released code does to each frame on its own,
#: where 10,000 to 100,000 bits a second at one frame a second are some 0.2 to 2 bits a pixel of 320x180.
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
    "official": Preset((Stage(), SECOND), bits=(0.17, 1.7), video=("libx264", "mpeg4"), per_frame=True),
}

#: A step of a recipe: a clip `[F,3,h,w]` in [0,1] to one of perhaps another size.
Step = Callable[[Tensor], Tensor]


@dataclass
class Recipe:
    """The steps drawn for a clip and what they are called, for records."""

    steps: list[tuple[str, Step]] = field(default_factory=list)

    def add(self, name: str, step: Step) -> None:
        self.steps.append((name, step))

    def __call__(self, clip: Tensor) -> Tensor:
        for _, step in self.steps:
            clip = step(clip)
        return clip


def drift(rng: np.random.Generator, frames: int, amount: float) -> np.ndarray:
    """A smooth random factor around 1 for each frame, within `1 - amount` to `1 + amount`."""
    phase, periods = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 1.5)
    return 1 + amount * rng.uniform(0, 1) * np.sin(phase + periods * 2 * np.pi * np.arange(frames) / max(frames, 24))


def resize(clip: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """To `size` (height, width); smoothed where it shrinks, as Real-ESRGAN's own resize is not."""
    if tuple(clip.shape[2:]) == size:
        return clip
    if mode == "area":
        return F.interpolate(clip, size=size, mode="area")
    return F.interpolate(clip, size=size, mode=mode, antialias=True, align_corners=False)


def draw_blur(rng, recipe: Recipe, frames: int, stage: Stage) -> None:
    if rng.random() >= stage.blur_share:
        return
    size = kernels.draw_size(rng)
    first, second = (kernels.draw(rng, size, stage.sigma, stage.sinc_share) for _ in range(2))
    # Mostly the first kernel, with a little of another one that comes and goes.
    share = torch.from_numpy(np.clip(drift(rng, frames, 0.25) - 1, 0, 1).astype(np.float32))[:, None, None]
    mixed = (1 - share) * first + share * second
    recipe.add(f"blur {size}", lambda clip: kernels.blur(clip, mixed))


def draw_resize(rng, recipe: Recipe, stage: Stage, size: tuple[int, int]) -> None:
    """To `size` times the stage's random factor."""
    kind = rng.choice(3, p=stage.resize)
    factor = rng.uniform(*stage.up) if kind == 0 else rng.uniform(*stage.down) if kind == 1 else 1.0
    mode, to = str(rng.choice(MODES)), tuple(max(round(n * factor), 8) for n in size)
    recipe.add(f"resize {factor:.2f} {mode}", lambda clip: resize(clip, to, mode))


def draw_noise(rng, recipe: Recipe, frames: int, stage: Stage) -> None:
    if rng.random() >= stage.noise_share:
        return
    gray, strength = rng.random() < stage.gray_share, drift(rng, frames, 0.2).reshape(-1, 1, 1, 1).astype(np.float32)
    seed = int(rng.integers(1 << 62))
    if rng.random() < 0.5:
        sigma = rng.uniform(*stage.gaussian)
        recipe.add(f"gaussian {sigma:.1f}", lambda clip: gaussian_noise(clip, sigma * strength / 255, gray, seed))
    else:
        scale = rng.uniform(*stage.poisson)
        recipe.add(f"poisson {scale:.2f}", lambda clip: poisson_noise(clip, scale * strength, gray, seed))


def gaussian_noise(clip: Tensor, sigma: np.ndarray, gray: bool, seed: int) -> Tensor:
    shape = (clip.shape[0], 1 if gray else 3, *clip.shape[2:])
    noise = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return (clip + torch.from_numpy(noise * sigma)).clamp(0, 1)


def poisson_noise(clip: Tensor, scale: np.ndarray, gray: bool, seed: int) -> Tensor:
    """Shot noise of 8-bit levels times `scale`; `gray` makes it from the luma, the same for all channels."""
    rounded = (clip.clamp(0, 1) * 255).round() / 255
    source = rounded.mean(1, keepdim=True) if gray else rounded
    counts = np.random.default_rng(seed).poisson(source.numpy() * 255).astype(np.float32) / 255
    return (clip + torch.from_numpy((counts - source.numpy()) * scale)).clamp(0, 1)


def draw_jpeg(rng, recipe: Recipe, frames: int, stage: Stage) -> None:
    if rng.random() >= stage.jpeg_share:
        return
    quality = np.clip(rng.uniform(*stage.jpeg) * drift(rng, frames, 0.1), 5, 95)
    recipe.add(f"jpeg {quality[0]:.0f}", lambda clip: from_bytes(codecs.jpeg(to_bytes(clip), quality)))


def draw_video(rng, recipe: Recipe, preset: Preset, stage: Stage) -> None:
    if rng.random() >= stage.video_share:
        return
    codec, bits = str(rng.choice(preset.video)), float(rng.uniform(*preset.bits))
    rate = int(rng.choice((15, 24, 25, 30)))
    recipe.add(f"{codec} {bits:.2f}", lambda clip: from_bytes(codecs.transcode(to_bytes(clip), codec, bits=bits, rate=rate)))


def draw_sinc(rng, recipe: Recipe, frames: int, share: float) -> None:
    if rng.random() >= share:
        return
    size = kernels.draw_size(rng)
    kernel = kernels.sinc(size, rng.uniform(np.pi / 3, np.pi))
    recipe.add(f"sinc {size}", lambda clip: kernels.blur(clip, kernel.expand(frames, -1, -1)))


def interlace(clip: Tensor) -> Tensor:
    """Every second line from the next frame: combs on what moves."""
    later = torch.cat([clip[1:], clip[-1:]])
    woven = clip.clone()
    woven[:, :, 1::2] = later[:, :, 1::2]
    return woven


def old_film(clip: Tensor, seed: int) -> Tensor:
    """Flicker, unsteady gate, scratches that stay for some frames, dust of a single frame."""
    rng = np.random.default_rng(seed)
    frames, _, height, width = clip.shape
    result = clip * torch.from_numpy(1 + 0.04 * rng.standard_normal((frames, 1, 1, 1)).astype(np.float32))
    for f in range(frames):
        shift = tuple(int(v) for v in np.rint(0.4 * rng.standard_normal(2)))
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
    """A recipe for clips of `frames` frames of `size` (height, width), whose result is a quarter of that."""
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
    finish = [
        lambda: (
            recipe.add(f"resize {mode}", lambda clip: resize(clip, low, mode)),
            draw_sinc(rng, recipe, frames, preset.final_sinc_share),
        ),
        lambda: draw_jpeg(rng, recipe, frames, last),
    ]
    for step in finish if rng.random() < 0.5 else reversed(finish):
        step()
    if rng.random() < preset.interlace_share:
        recipe.add("interlace", interlace)
    draw_video(rng, recipe, preset, last)
    return recipe


def degrade(clip: Tensor, preset: Preset, rng: np.random.Generator) -> np.ndarray:
    """Low-quality uint8 `[F,H/4,W/4,3]` of a clean clip `[F,3,H,W]` in [0,1], whose sides are multiples of 4."""
    size = tuple(clip.shape[2:])
    if preset.per_frame:
        return np.concatenate([to_bytes(draw(rng, preset, 1, size)(frame[None])) for frame in clip])
    return to_bytes(draw(rng, preset, len(clip), size)(clip))
