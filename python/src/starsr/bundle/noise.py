# SPDX-License-Identifier: MPL-2.0
"""The plugin's noise: a function of seed, frame number and step alone.

The engine's module `diffusion::noise` is the same in Rust.
"""

import numpy as np

#: Values that are made together. The first half of their random words gives radii, the second half
#: angles.
BLOCK = 128


def chacha8(key: bytes, count: int) -> np.ndarray:
    """Return `count` words, uint32, of the ChaCha stream of 8 rounds with stream number 0.

    `key` has 32 bytes.
    """
    blocks = -(-count // 16)
    state = np.zeros((16, blocks), np.uint32)
    state[:4] = np.frombuffer(b"expand 32-byte k", "<u4")[:, None]
    state[4:12] = np.frombuffer(key, "<u4")[:, None]
    state[12] = np.arange(blocks, dtype=np.uint32)
    x = state.copy()

    def turn(i: int, bits: int) -> None:
        x[i] = (x[i] << np.uint32(bits)) | (x[i] >> np.uint32(32 - bits))

    def quarter(a: int, b: int, c: int, d: int) -> None:
        for into, by, turned, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[into] += x[by]
            x[turned] ^= x[into]
            turn(turned, bits)

    for _ in range(4):
        for i in range(4):
            quarter(i, 4 + i, 8 + i, 12 + i)
        for i in range(4):
            quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return (x + state).T.reshape(-1)[:count]


def frame_noise(seed: int, frame: int, step: int, count: int) -> np.ndarray:
    """Return N(0,1) noise `[count]` float32 of a frame, within 3e-6 of the plugin's.

    Step 0 is the initial noise, step i+1 the noise that follows evaluation i.
    """
    key = seed.to_bytes(8, "little") + b"starsr noise"
    key += frame.to_bytes(8, "little") + step.to_bytes(4, "little")
    words = chacha8(key, -(-count // BLOCK) * BLOCK).reshape(-1, 2, BLOCK // 2)
    first, second = words[:, 0], words[:, 1]
    # Rounded as in the plugin, whose numbers near 1 are coarse.
    uniform = ((first >> 1).astype(np.float32) + np.float32(0.5)).astype(np.float64) / 2.0**31
    radius = np.sqrt(-2 * np.log(uniform)) * np.where(first & 1, -1.0, 1.0)
    angle = second.astype(np.int32) / 2.0**31 * (np.pi / 2)
    values = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    return values.reshape(-1)[:count].astype(np.float32)
