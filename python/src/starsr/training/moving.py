# SPDX-License-Identifier: MPL-2.0
"""Clips whose motion is known.

They are photographs under a moving camera, crossed by pieces of other photographs, and shrunk
video.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from starsr.data.clips import moving_crop
from starsr.data.media import SCALE, from_bytes, to_bytes
from starsr.degradation import first_order, kernels, second_order
from starsr.degradation.codecs import transcode
from starsr.degradation.second_order import MODES, PRESETS
from starsr.training.dataset import Clips
from starsr.training.nano import taken

#: Kinds of degradation, and their shares; x264 encodes the clean shrink of `video`.
MIX = {"clean": 0.06, "video": 0.2, "first": 0.04, "light": 0.38, "heavy": 0.32}
#: Factors by which photographs are shrunk.
SHRINK = (0.8, 1.8)
#: Shares of clips that stand still, pan by whole pixels, or have a freely moving camera.
MOTIONS = {"still": 0.12, "pan": 0.38, "free": 0.5}
#: x264's constant rate factors for `video`.
CRF = (18.0, 34.0)
#: Shares of the filters `MODES` of a clean shrink.
MODE_SHARES = (0.25, 0.15, 0.6)


def mix_with(heavy: float) -> dict[str, float]:
    """Return `MIX` with another share of heavy degradation. Raises `ValueError` outside 0 to 1."""
    if not 0 <= heavy < 1:
        raise ValueError(f"{heavy} is no share of clips: it must be from 0 to below 1")
    rest = (1 - heavy) / (1 - MIX["heavy"])
    return {kind: heavy if kind == "heavy" else rest * share for kind, share in MIX.items()}


def camera(rng: np.random.Generator, frames: int, size: int) -> np.ndarray:
    """Draw a smooth path `[F,3,3]` of a camera.

    Each matrix maps the pixels (x, y, 1) of a frame to those of the first. Turns and zooms are
    about the centre.
    """
    times = np.arange(frames)
    velocity = rng.uniform(-6, 6, 2) * rng.choice([0.25, 1.0])
    shake = rng.normal(0, 1, (frames, 2)) * rng.choice([0.0, 0.0, 0.3])
    sway = rng.uniform(-1.5, 1.5, 2) * np.sin(
        rng.uniform(0, 6) + times[:, None] * rng.uniform(0.2, 1.0)
    )
    shifts = velocity * times[:, None] + shake + sway
    angles = np.deg2rad(rng.normal(0, 0.35)) * times
    zooms = np.exp(rng.normal(0, 0.004) * times)
    path, centre = np.zeros((frames, 3, 3)), (size - 1) / 2
    for matrix, shift, angle, zoom in zip(path, shifts - shifts[0], angles, zooms, strict=True):
        c, s = zoom * np.cos(angle), zoom * np.sin(angle)
        matrix[:] = [
            [c, -s, centre - c * centre + s * centre + shift[0]],
            [s, c, centre - s * centre - c * centre + shift[1]],
            [0, 0, 1],
        ]
    return path


def bounds(path: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the greatest (x, y) that frames of `size` see along a path.

    One pixel is added on each side.
    """
    corners = np.array([[x, y, 1] for x in (0, size - 1) for y in (0, size - 1)])
    seen = np.einsum("fij,cj->fci", path, corners)[..., :2].reshape(-1, 2)
    return np.floor(seen.min(0)) - 1, np.ceil(seen.max(0)) + 1


def filmed(picture: Image.Image, path: np.ndarray, corner: np.ndarray, size: int) -> np.ndarray:
    """Return frames `[F,size,size,...]` of a picture under the camera of `path`.

    The picture lies at `corner` (x, y) in the coordinates of the first frame.
    """
    # A lookup in a copy of twice the size does not blur at fractions of a pixel.
    width, height = picture.size
    double = picture.resize((2 * width, 2 * height), Image.Resampling.LANCZOS)
    frames = []
    for matrix in path:
        # Pillow adds half a pixel before the map and takes none off after it.
        a, b, c = matrix[0] * 2
        d, e, f = matrix[1] * 2
        c, f = c - 2 * corner[0] + 1 - (a + b) / 2, f - 2 * corner[1] + 1 - (d + e) / 2
        frame = double.transform(
            (size, size),
            Image.Transform.AFFINE,
            (a, b, c, d, e, f),
            Image.Resampling.BICUBIC,
        )
        frames.append(np.asarray(frame))
    return np.stack(frames)


def piece(
    photo: np.ndarray, size: tuple[int, int], rng: np.random.Generator, shrink: float
) -> Image.Image:
    """Cut a random piece out of a photograph and shrink it by `shrink` to `size` (width, height).

    The factor is smaller where the photograph is too small for it.
    """
    full, wanted = np.array(photo.shape[1::-1]), np.array(size)
    shrink = min(shrink, *(full / wanted))
    crop = np.minimum(np.ceil(wanted * shrink).astype(int), full)
    left, top = (int(rng.integers(0, n + 1)) for n in full - crop)
    part = Image.fromarray(photo[top : top + crop[1], left : left + crop[0]])
    return part.resize(size, Image.Resampling.LANCZOS)


def moves(path: np.ndarray) -> np.ndarray:
    """Return maps `[F-1,3,3]` from the pixels of each frame to the same points in the next."""
    result: np.ndarray = np.linalg.inv(path[1:]) @ path[:-1]
    return result


@dataclass(frozen=True)
class Film:
    """A clean clip `[F,S,S,3]` uint8 and its `moves` `[F-1,3,3]`.

    The moves hold where the next frame shows the same.
    """

    frames: np.ndarray
    moves: np.ndarray


def free_film(photo: np.ndarray, frames: int, size: int, rng: np.random.Generator) -> Film:
    """Film a photograph with a camera that pans, turns and zooms."""
    path = camera(rng, frames, size)
    low, high = bounds(path, size)
    width, height = (int(n) for n in high - low + 1)
    picture = piece(photo, (width, height), rng, rng.uniform(*SHRINK))
    return Film(filmed(picture, path, low, size), moves(path))


def panned(photo: np.ndarray, frames: int, size: int, rng: np.random.Generator) -> Film:
    """Pan over a photograph by whole pixels, at most 6 a frame."""
    velocity = rng.integers(-6, 7, 2)
    travel = np.abs(velocity) * (frames - 1)
    width, height = (int(n) for n in size + travel)
    region = np.asarray(piece(photo, (width, height), rng, rng.uniform(*SHRINK)))
    move = np.eye(3)
    move[:2, 2] = -velocity
    pictures = moving_crop(region, velocity[::-1], frames, (size, size))
    return Film(pictures, np.repeat(move[None], frames - 1, 0))


def pass_before(film: Film, photo: np.ndarray, rng: np.random.Generator) -> Film:
    """Let a polygon, cut out of another photograph, cross a film."""
    count, size = film.frames.shape[:2]
    side = int(rng.uniform(0.2, 0.6) * size)
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(5, 12))))
    radii = side / 2 * rng.uniform(0.55, 1.0, len(angles))
    corners = [
        (4 * (side / 2 + r * np.cos(a)), 4 * (side / 2 + r * np.sin(a)))
        for a, r in zip(angles, radii, strict=True)
    ]
    mask = Image.new("L", (4 * side, 4 * side))
    ImageDraw.Draw(mask).polygon(corners, fill=255)
    mask = mask.resize((side, side), Image.Resampling.BOX)
    picture = piece(photo, (side, side), rng, rng.uniform(*SHRINK))
    path, corner = camera(rng, count, size), rng.uniform(0, size - side, 2)
    shape = filmed(mask, path, corner, size)[..., None] / np.float32(255)
    texture = filmed(picture, path, corner, size)
    mixed = film.frames + shape * (texture - film.frames.astype(np.float32))
    return Film(np.rint(mixed).clip(0, 255).astype(np.uint8), film.moves)


class MovingClips(Clips):
    """Triples `(low [F,h,w,3], high [F,4h,4w,3], moves [F-1,3,3])`, like `Clips` with the motion.

    The pixels are uint8. The moves are float32 and map the pixels (x, y, 1) of a high frame to the
    next frame.
    """

    def __init__(
        self,
        media: Path,
        length: int,
        frames: int = 8,
        side: int = 64,
        seed: int = 0,
        mix: Mapping[str, float] = MIX,
    ) -> None:
        super().__init__(media, length, frames, side, seed, mix)

    def __getitem__(  # type: ignore[override]
        self, index: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        film = self._film(*self._media, rng)
        low = self._degrade(from_bytes(film.frames), rng)
        high, path = torch.from_numpy(film.frames), torch.from_numpy(film.moves).float()
        return torch.from_numpy(low.copy()), high, path

    def _degrade(self, clip: Tensor, rng: np.random.Generator) -> np.ndarray:
        kind = str(rng.choice(list(self.mix), p=list(self.mix.values())))
        if kind in ("clean", "video"):
            mode = str(rng.choice(MODES, p=MODE_SHARES))
            low = to_bytes(second_order.resize(clip, (self.side, self.side), mode))
            if kind == "clean":
                return low
            return transcode(low, "libx264", quality=rng.uniform(*CRF))
        if kind == "first":
            return first_order.degrade(clip, first_order.draw(rng), rng)
        return second_order.degrade(clip, PRESETS[kind], rng)

    def _film(
        self, photos: list[np.ndarray], videos: list[np.ndarray], rng: np.random.Generator
    ) -> Film:
        film = self._scene(photos, videos, rng)
        if rng.random() < 0.25:
            film = pass_before(film, photos[rng.integers(len(photos))], rng)
        high = film.frames
        if rng.random() < 0.03:
            cut = int(rng.integers(1, self.frames))
            high = np.concatenate([high[:cut], self._scene(photos, videos, rng).frames[cut:]])
        if rng.random() < 0.06:
            # The network must leave alone what is out of focus.
            sigma = rng.uniform(0.7, 3)
            kernel = kernels.gaussian(13, (sigma, sigma), 0.0).expand(len(high), -1, -1)
            high = to_bytes(kernels.blur(from_bytes(high), kernel))
        if rng.random() < 0.2:
            gain, gamma = rng.uniform(0.3, 1.0), rng.uniform(0.7, 1.6)
            high = np.rint(255 * gain * (np.arange(256) / 255) ** gamma).astype(np.uint8)[high]
        return Film(np.ascontiguousarray(high), film.moves)

    def _scene(
        self, photos: list[np.ndarray], videos: list[np.ndarray], rng: np.random.Generator
    ) -> Film:
        size, frames = self.side * SCALE, self.frames
        still = np.broadcast_to(np.eye(3), (frames - 1, 3, 3)).copy()
        if videos and rng.random() < 0.15:
            video = videos[rng.integers(len(videos))]
            start = rng.integers(0, len(video) - frames + 1)
            y, x = (rng.integers(0, full - size + 1) for full in video.shape[1:3])
            return Film(video[start : start + frames, y : y + size, x : x + size], still)
        photo = photos[rng.integers(len(photos))]
        motion = str(rng.choice(list(MOTIONS), p=list(MOTIONS.values())))
        if motion == "free":
            return free_film(photo, frames, size, rng)
        if motion == "still":
            picture = np.asarray(piece(photo, (size, size), rng, rng.uniform(*SHRINK)))
            return Film(np.repeat(picture[None], frames, 0), still)
        return panned(photo, frames, size, rng)


class Reel:
    """The clips that crops are taken from, on the device. New ones replace the oldest."""

    def __init__(self, count: int, clips: MovingClips, device: torch.device) -> None:
        frames, side = clips.frames, clips.side
        self.low, self.high = (
            torch.empty((count, frames, n, n, 3), dtype=torch.uint8, device=device)
            for n in (side, SCALE * side)
        )
        self.moves = torch.empty((count, frames - 1, 3, 3))
        self.made = 0

    def put(self, low: Tensor, high: Tensor, moves: Tensor) -> None:
        """Add a clip."""
        place = self.made % len(self.low)
        stores = (self.low, self.high, self.moves)
        for store, part in zip(stores, (low, high, moves), strict=True):
            store[place].copy_(part, non_blocking=True)
        self.made += 1

    def draw(
        self, count: int, frames: int, side: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw crops with their moves `[N,F-1,3,3]`.

        The crops are low `[N,F,3,side,side]` and high `[N,F,3,4*side,4*side]` in [0,1]. Time, rows
        and columns of a crop are each reversed at random, and its sides exchanged.
        """
        filled = min(self.made, len(self.low))
        sizes = zip(self.low.shape[1:4], (frames, side, side), strict=True)
        limits = (filled, *(full - part + 1 for full, part in sizes))
        places = torch.stack(
            [torch.randint(limit, (count,), generator=generator) for limit in limits], -1
        )
        turns = torch.randint(2, (count, 4), generator=generator).bool()
        frame = crop_frame(places[:, 2:] * SCALE, turns, SCALE * side)
        forward = self.moves[places[:, :1], places[:, 1:2] + torch.arange(frames - 1)]
        moves = torch.where(turns[:, :1, None, None], torch.linalg.inv(forward.flip(1)), forward)
        moves = frame[:, None] @ moves @ torch.linalg.inv(frame)[:, None]
        places, turns, moves = (
            part.to(self.low.device, non_blocking=True) for part in (places, turns, moves)
        )
        low, high = (
            taken(part, places, turns, frames, side, scale).movedim(-1, 2).float() / 255
            for part, scale in ((self.low, 1), (self.high, SCALE))
        )
        return low, high, moves


def crop_frame(corners: Tensor, turns: Tensor, side: int) -> Tensor:
    """Return maps `[N,3,3]` from pixels (x, y, 1) of whole clips to those of crops.

    The crops begin at `corners` `[N,2]` (row, column) and are turned as by `taken`: rows and
    columns are read from the clip in reverse, and then exchanged.
    """
    count = len(corners)
    matrix = torch.zeros(count, 3, 3)
    matrix[:, 2, 2] = 1
    for axis, source, reverse in ((0, 1, turns[:, 2]), (1, 0, turns[:, 1])):
        start = corners[:, source].float()
        matrix[:, axis, axis] = torch.where(reverse, -1.0, 1.0)
        matrix[:, axis, 2] = torch.where(reverse, side - 1 + start, -start)
    exchanged = matrix[:, [1, 0, 2]]
    return torch.where(turns[:, 3, None, None], exchanged, matrix)


def warped(pictures: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
    """Look up pictures `[N,C,H,W]` at the pixels to which `moves` `[N,3,3]` lead.

    Returns them with a mask `[N,1,H,W]` of the pixels that come from inside the picture.
    """
    height, width = pictures.shape[2:]
    y, x = torch.meshgrid(
        *(torch.arange(n, device=pictures.device, dtype=torch.float32) for n in (height, width)),
        indexing="ij",
    )
    points = torch.stack([x, y, torch.ones_like(x)]).flatten(1)
    ends = (moves[:, :2].float() @ points).unflatten(2, (height, width))
    grid = torch.stack([2 * ends[:, 0] / (width - 1) - 1, 2 * ends[:, 1] / (height - 1) - 1], -1)
    inside = (grid.abs() <= 1).all(-1)[:, None]
    found = F.grid_sample(
        pictures.float(), grid, mode="bilinear", padding_mode="border", align_corners=True
    )
    return found, inside


def shrink(high: Tensor, generator: torch.Generator) -> Tensor:
    """Shrink frames `[N,F,3,4h,4w]` in [0,1] to `[N,F,3,h,w]`, rounded to 8 bits.

    The filter is drawn for each clip.
    """
    kinds = torch.multinomial(torch.tensor(MODE_SHARES), len(high), True, generator=generator)
    size = (high.shape[3] // SCALE, high.shape[4] // SCALE)
    low = torch.empty((*high.shape[:3], *size), device=high.device)
    for kind, mode in enumerate(MODES):
        chosen = (kinds == kind).nonzero().flatten().to(high.device)
        if len(chosen):
            small = second_order.resize(high[chosen].flatten(0, 1), size, mode)
            low[chosen] = small.unflatten(0, (len(chosen), -1))
    return (low.clamp(0, 1) * 255).round() / 255
