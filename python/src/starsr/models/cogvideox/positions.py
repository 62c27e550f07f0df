# SPDX-License-Identifier: MPL-2.0
"""The positions of image tokens, for any grid. Tokens are ordered by frame, row and column."""

import numpy as np

#: Base of the wavelengths.
BASE = 10000.0
#: Rows and columns of the additive table count so many tokens as one.
SPATIAL_SCALE = 1.875


def rotary_parts(head_dim: int) -> tuple[int, int, int]:
    """Return the channels of a head that frames, rows and columns rotate, in this order."""
    across = 3 * (head_dim // 8)
    return head_dim // 4, across, across


def rotary(
    frames: int, rows: int, columns: int, head_dim: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Return cosine and sine of each token's angles, `[frames*rows*columns,head_dim/2]` float32.

    Entry `j` turns the channels `2j` and `2j+1` of a head. Within a part of `d` channels
    (`rotary_parts`) it is the position times `BASE**(-2j/d)`.
    """
    angles = []
    places = np.indices((frames, rows, columns)).reshape(3, -1)
    for place, width in zip(places, rotary_parts(head_dim), strict=True):
        angles.append(place[:, None] * BASE ** (-np.arange(0, width, 2) / width))
    joined = np.concatenate(angles, 1)
    return np.cos(joined).astype(np.float32), np.sin(joined).astype(np.float32)


def sincos(frames: int, rows: int, columns: int, width: int = 1920) -> np.ndarray:
    """Return the table that is added to the tokens, `[frames*rows*columns,width]` float32.

    A quarter of the features is of the frame, then come the column and the row with equal parts,
    which count `SPATIAL_SCALE` tokens as one. Each part has sines first, then cosines.
    """
    frame, row, column = np.indices((frames, rows, columns)).reshape(3, -1)
    across = 3 * width // 8
    parts = [(frame, width // 4), (column / SPATIAL_SCALE, across), (row / SPATIAL_SCALE, across)]
    features = []
    for place, size in parts:
        half = size // 2
        angles = place[:, None] * BASE ** (-np.arange(half) / half)
        features += [np.sin(angles), np.cos(angles)]
    return np.concatenate(features, 1).astype(np.float32)
