# SPDX-License-Identifier: MPL-2.0
"""`starsr-degrade`: makes degraded copies of clean clips, for training and as test sets."""

import argparse
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from starsr.data.clips import pan
from starsr.data.media import (
    PHOTO_SUFFIXES,
    SCALE,
    VIDEO_SUFFIXES,
    find,
    from_bytes,
    read_clip,
    read_photo,
)
from starsr.data.pairs import write_pair
from starsr.degradation.second_order import PRESETS, degrade

#: Least side of a clean clip in pixels.
SMALLEST = 8 * SCALE


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    result = argparse.ArgumentParser(
        prog="starsr-degrade",
        description="Makes degraded copies of clean clips: paired folders gt, lq and text, for "
        "training and as test sets.",
    )
    add = result.add_argument
    add("input", type=Path, help="folder of clean video, and of photographs, which are panned")
    add("output", type=Path, help="folder of the pairs; existing pairs are left alone")
    add(
        "--preset",
        choices=PRESETS,
        default="heavy",
        help="strength (%(default)s); official: a new draw for each frame, as in the released code",
    )
    add("--frames", type=int, default=32, help="frames of a clip (%(default)s)")
    add("--width", type=int, default=1280, help="greatest width of a clean clip (%(default)s)")
    add("--height", type=int, default=720, help="greatest height of a clean clip (%(default)s)")
    add("--copies", type=int, default=1, help="degradations of each clip (%(default)s)")
    add(
        "--interlace",
        type=float,
        default=0.0,
        help="share of clips that are interlaced (%(default)s)",
    )
    add(
        "--old-film",
        type=float,
        default=0.0,
        help="share of clips that look like old film (%(default)s)",
    )
    add("--seed", type=int, default=0, help="same seed, same clips (%(default)s)")
    return result


def clean_clip(path: Path, options: argparse.Namespace, rng: np.random.Generator) -> np.ndarray:
    """Return a clip `[F,H,W,3]` uint8 of a video or a photograph.

    It is within the sizes of the options, and its sides are multiples of 8.
    """
    most = (options.height, options.width)
    if path.suffix.lower() in PHOTO_SUFFIXES:
        photo = read_photo(path)
        height, width = (
            int(min(m, 0.8 * n)) // 8 * 8 for m, n in zip(most, photo.shape[:2], strict=True)
        )
        return pan(photo, options.frames, (height, width), rng, shrink=1.0)
    video = read_clip(path, limit=options.frames)
    size = video.shape[1:3]
    height, width = (min(m, n) // 8 * 8 for m, n in zip(most, size, strict=True))
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return np.ascontiguousarray(video[:, top : top + height, left : left + width])


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parser().parse_args(arguments)

    def refuse(reason: str) -> int:
        print(f"starsr-degrade: {reason}", file=sys.stderr)
        return 1

    files = find(options.input, PHOTO_SUFFIXES + VIDEO_SUFFIXES)
    if not files:
        return refuse(f"{options.input} has no video and no photographs: name another folder")
    shares = {"interlace_share": options.interlace, "film_share": options.old_film}
    preset = replace(PRESETS[options.preset], **shares)
    for path in tqdm(files, unit="clip", disable=None):
        for copy in range(options.copies):
            name = "-".join(path.relative_to(options.input).with_suffix("").parts)
            name += f"-{copy}" if options.copies > 1 else ""
            if (options.output / "text" / f"{name}.txt").is_file():
                continue
            # The seed depends on the name alone, whatever else is in the folder.
            rng = np.random.default_rng((options.seed, zlib.crc32(name.encode())))
            try:
                high = clean_clip(path, options, rng)
            except (OSError, ValueError) as e:
                return refuse(f"{path} cannot be read ({e}): remove it from the folder")
            if min(high.shape[1:3]) < SMALLEST:
                return refuse(
                    f"{path} is smaller than {SMALLEST} pixels: remove it from the folder"
                )
            low = degrade(from_bytes(high), preset, rng)
            words = path.with_suffix(".txt")
            text = words.read_text(encoding="utf-8").strip() if words.is_file() else ""
            write_pair(options.output, name, high, low, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
