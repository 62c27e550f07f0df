# SPDX-License-Identifier: MPL-2.0
"""Compresses whole clips with real codecs, frame by frame (JPEG) or as video."""

import io

import av
import numpy as np
from PIL import Image

from starsr.data.color import YCBCR

#: Video codecs, by the names of their encoders in FFmpeg.
VIDEO = ("libx264", "mpeg4", "libvpx", "mjpeg")


def to_yuv420(clip: np.ndarray, full_range: bool) -> np.ndarray:
    """Convert `[F,h,w,3]` uint8 RGB with even sides to planar 4:2:0 `[F,h*3/2,w]`.

    Values are rounded to nearest, since a network would learn even a small colour cast.
    """
    frames, height, width, _ = clip.shape
    yuv = clip.reshape(-1, 3) @ YCBCR.T.astype(np.float32)
    yuv = yuv.reshape(frames, height, width, 3)
    if not full_range:
        yuv *= np.array([219 / 255, 224 / 255, 224 / 255], np.float32)
    luma = yuv[..., 0] + (0 if full_range else 16)
    chroma = yuv[..., 1:].reshape(frames, height // 2, 2, width // 2, 2, 2).mean((2, 4)) + 128
    planes = [plane.reshape(frames, -1) for plane in (luma, chroma[..., 0], chroma[..., 1])]
    packed = np.concatenate(planes, 1).reshape(frames, height * 3 // 2, width)
    return np.clip(np.rint(packed), 0, 255).astype(np.uint8)


def from_yuv420(planes: np.ndarray, full_range: bool) -> np.ndarray:
    """Convert planar 4:2:0 `[F,h*3/2,w]` to `[F,h,w,3]` uint8 RGB; chroma is repeated."""
    frames, rows, width = planes.shape
    height = rows * 2 // 3
    flat, size = planes.reshape(frames, -1).astype(np.float32), height * width
    chroma = flat[:, size:].reshape(frames, 2, height // 2, width // 2)
    chroma = chroma.repeat(2, 2).repeat(2, 3) - 128
    luma = flat[:, :size].reshape(frames, 1, height, width) - (0 if full_range else 16)
    if not full_range:
        luma, chroma = luma * np.float32(255 / 219), chroma * np.float32(255 / 224)
    yuv = np.concatenate([luma, chroma], 1).transpose(0, 2, 3, 1)
    rgb = yuv @ np.linalg.inv(YCBCR).T.astype(np.float32)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def transcode(
    clip: np.ndarray,
    codec: str,
    *,
    quality: float | None = None,
    bits: float = 0.0,
    rate: int = 25,
) -> np.ndarray:
    """Encode and decode `[F,h,w,3]` uint8 as one video.

    Either the quality is constant at `quality` (CRF for libx264 and libvpx, the quantiser's scale
    for others), or the bit rate is, at `bits` a pixel.
    """
    frames, height, width, _ = clip.shape
    # libvpx refuses pictures smaller than its blocks.
    below, right = max(-height % 2, 16 - height), max(-width % 2, 16 - width)
    padded = np.pad(clip, ((0, 0), (0, below), (0, right), (0, 0)), mode="edge")
    buffer = io.BytesIO()
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = padded.shape[1:3]
        stream.pix_fmt = pixels
        context = stream.codec_context
        context.thread_count = 1
        if quality is None:
            context.bit_rate = max(int(bits * padded.shape[1] * padded.shape[2] * rate), 1000)
            if codec in ("mpeg4", "mjpeg"):
                # The default tolerance of 4 Mbit/s is more than a short clip ever needs.
                stream.options = {
                    "bt": str(context.bit_rate // rate + 1),
                    "maxrate": str(context.bit_rate),
                    "bufsize": str(context.bit_rate // 2),
                }
        if codec == "libx264":
            # On processors with AVX-512, x264's macroblock tree makes results vary between runs.
            stream.options = {"preset": "veryfast", "x264-params": "mbtree=0"}
            if quality is not None:
                stream.options |= {"crf": f"{quality:.1f}"}
        elif codec == "libvpx":
            # In real time, libvpx would do only as much as the clock allows.
            stream.options = {"deadline": "good", "cpu-used": "5"}
            if quality is not None:
                stream.options |= {"crf": f"{quality:.0f}"}
                context.bit_rate = 100_000_000
        elif quality is not None:
            context.flags |= av.codec.context.Flags.qscale
            context.global_quality = int(quality * 118)
        for planes in to_yuv420(padded, codec == "mjpeg"):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format=pixels)))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as container:
        decoded = np.stack([frame.to_ndarray() for frame in container.decode(video=0)])
    if len(decoded) != frames:
        raise RuntimeError(f"{codec} returned {len(decoded)} of {frames} frames")
    return from_yuv420(decoded, codec == "mjpeg")[:, :height, :width]


def jpeg(clip: np.ndarray, qualities: np.ndarray) -> np.ndarray:
    """Compress each frame of `[F,h,w,3]` uint8 as JPEG of its quality, 1 to 95."""
    result = np.empty_like(clip)
    for frame, quality, to in zip(clip, qualities, result, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "JPEG", quality=round(float(quality)))
        to[:] = np.asarray(Image.open(buffer).convert("RGB"))
    return result
