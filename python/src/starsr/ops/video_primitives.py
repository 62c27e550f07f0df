# SPDX-License-Identifier: MPL-2.0
"""What CogVideoX's networks need beyond `Ops`: tokens of whole clips and of texts, and volumes."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from starsr.ops.primitives import Ops, Padding, V

#: Frames before the current one that a causal convolution sees.
CAUSAL = 2


class VideoOps(Ops[V], Protocol[V]):
    """The primitive operations on the tokens of whole clips and on volumes.

    Tokens `[B,T*h*w,C]` are ordered by frame, row and column. Volumes are `[1,C,F,h,w]`.
    """

    def frame_maps(self, x: V) -> V:
        """`[B,T,C,h,w]` to `[B*T,C,h,w]`."""
        ...

    def token_maps(self, tokens: V, channels: int, like: V, patch: int) -> V:
        """Tokens `[B,T*h/patch*w/patch,C]` to maps `[B*T,C,h/patch,w/patch]`.

        `like` is `[B,T,_,h,w]`.
        """
        ...

    def map_tokens(self, maps: V, channels: int, like: V) -> V:
        """Inverse of `token_maps`."""
        ...

    def unpatch(self, tokens: V, channels: int, like: V, patch: int) -> V:
        """Tokens `[B,T*h/patch*w/patch,C*patch*patch]` to `[B,T,C,h,w]`, the shape of `like`.

        The features of a token are ordered (channel, row, column).
        """
        ...

    def split_at(self, x: V, count: int) -> tuple[V, V]:
        """Return the first `count` entries of axis 1 and the others."""
        ...

    def rows(self, x: V, parts: int) -> Sequence[V]:
        """Equal parts of axis 1."""
        ...

    def as_rows(self, x: V, width: int) -> V:
        """`[B,n*width]` to `[B,n,width]`."""
        ...

    def join(self, values: Sequence[V]) -> V:
        """Concatenation along axis 1."""
        ...

    def add_constant(self, x: V, name: str, values: np.ndarray) -> V:
        """Sum with constant 32-bit values, with broadcasting."""
        ...

    def precise_norm(self, x: V, name: str, channels: int, eps: float) -> V:
        """Normalisation of the last axis, in 32 bits and with a result of 32 bits."""
        ...

    def head_norm(self, x: V, name: str, heads: int, head_dim: int, eps: float) -> V:
        """`precise_norm` of each head of tokens `[B,N,heads*head_dim]`, with shared parameters."""
        ...

    def lead_rows(self, table: V, value: float, count: int, width: int) -> V:
        """Prepend `count` rows of `value` to a table `[N,width]` of 32 bits."""
        ...

    def rotate(self, x: V, cos: V, sin: V, heads: int) -> V:
        """Rotate pairs of neighbouring channels of each head, in tokens `[B,N,C]` of 32 bits.

        `cos` and `sin` are `[N,C/heads/2]`.
        """
        ...

    def gelu_tanh(self, x: V) -> V:
        """GELU by the hyperbolic tangent."""
        ...

    def rms_norm(self, x: V, name: str, channels: int, eps: float) -> V:
        """Divide the last axis by its root mean square and weigh it, in 32 bits."""
        ...

    def relative_attention(
        self, q: V, k: V, v: V, heads: int, name: str, buckets: np.ndarray, count: int
    ) -> V:
        """Attention of tokens `[B,T,C]` by products that are not scaled.

        A head adds to them the entry of the parameter `name` `[count,heads]` for the bucket, of
        `buckets` `[T,T]`, of query and key.
        """
        ...

    def wide_linear(self, x: V, name: str, cin: int, cout: int) -> V:
        """`linear` without bias, from 32 to 32 bits, for values of any size."""
        ...

    def volume(self, x: V) -> V:
        """Frames `[F,C,h,w]` to a volume."""
        ...

    def volume_frames(self, x: V) -> V:
        """Inverse of `volume`."""
        ...

    def volume_conv(
        self,
        x: V,
        name: str,
        cin: int,
        cout: int,
        kernel: tuple[int, ...],
        stride: int = 1,
        padding: Padding = (0, 0, 0, 0),
    ) -> V:
        """Convolution of a volume. `kernel` is (time, row, column), or (row, column) of a frame.

        `stride` is that of rows and columns. Pads with zeros in each frame only.
        """
        ...

    def volume_norm(self, x: V, name: str, channels: int, groups: int, eps: float) -> V:
        """Normalisation of groups of channels over a whole volume, in 32 bits."""
        ...

    def lead(self, x: V, cache: V | None) -> V:
        """Prepend `CAUSAL` frames to a volume.

        They are those of `cache`, or copies of the first frame if it is `None` or has no frames.
        """
        ...

    def trail(self, x: V) -> V:
        """Return the last `CAUSAL` frames of a volume."""
        ...

    def halve_frames(self, x: V) -> V:
        """Average pairs of frames after the first: `2n+1` frames become `n+1`."""
        ...

    def enlarge(self, x: V, frames: bool) -> V:
        """Double rows and columns by repetition, and frames too if `frames`.

        Of an odd number of frames the first is not doubled.
        """
        ...
