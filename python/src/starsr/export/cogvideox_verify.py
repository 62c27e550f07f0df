# SPDX-License-Identifier: MPL-2.0
"""Compares the graphs of a bundle of STAR on CogVideoX with PyTorch and diffusers."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starsr.export.cogvideox_sources import TextEncoder
from starsr.export.verify import Case, Difference, Verifier
from starsr.models.cogvideox import network, positions, text
from starsr.models.cogvideox.network import ROTARY, CogVideoXConfig
from starsr.models.cogvideox.vae import VaeConfig, cache_shapes, runs
from starsr.models.weights import Floats
from starsr.ops.video_ops import VideoTorchOps

#: Batch, frames, height and width of latents.
SHAPES = [(1, 1, 6, 4), (2, 3, 4, 10)]


def tables(config: CogVideoXConfig, frames: int, height: int, width: int) -> dict[str, Tensor]:
    """Return the denoiser's inputs that hold the positions for latents of a size, by name."""
    grid = (frames, height // config.patch, width // config.patch)
    if config.positions == ROTARY:
        cos, sin = positions.rotary(*grid, config.head_dim)
        return {"cos": torch.from_numpy(cos), "sin": torch.from_numpy(sin)}
    return {"positions": torch.from_numpy(positions.sincos(*grid, config.width))}


class CogVideoXVerifier(Verifier):
    """Runs the graphs of a bundle and their PyTorch forms; `Verifier` describes the arguments."""

    @torch.no_grad()
    def networks(
        self, weights: Mapping[str, Tensor], config: CogVideoXConfig
    ) -> Iterator[Difference]:
        """Compare modulation and denoiser; the denoiser receives PyTorch's modulation."""
        ops, rows, cases = VideoTorchOps(Floats(weights)), [], []
        for batch, *size in SHAPES:
            frames, height, width = size
            shape = (batch, frames, config.latent_channels, height, width)
            t = torch.tensor([979, 19][:batch])
            feeds = {
                "x": self.random(*shape),
                "hint": self.random(*shape),
                "modulation": network.modulation(ops, t, config),
                "embedding": self.random(batch, config.text_length, config.text_dim),
            }
            places = tables(config, frames, height, width)
            x, hint, rows_of_t, embedding = feeds.values()
            v = network.denoiser(ops, x, hint, rows_of_t, embedding, list(places.values()), config)
            rows.append(((batch,), {"t": t}, [feeds["modulation"]]))
            cases.append((shape, {**feeds, **places}, [v]))
        yield from self.compare("modulation", rows)
        yield from self.compare("denoiser", cases)

    def text(self, encoder: TextEncoder, length: int) -> Iterator[Difference]:
        """Compare the text encoder with PyTorch, on an empty text and on random tokens."""
        some = torch.randint(encoder.config.vocabulary, (2, length), generator=self.generator)
        cases: list[Case] = [
            (tuple(tokens.shape), {"tokens": tokens}, [encoder.embed(tokens)])
            for tokens in (text.padded([], length)[0], some)
        ]
        yield from self.compare("text_encoder", cases)

    @torch.no_grad()
    def autoencoder(self, weights: Mapping[str, Tensor], config: VaeConfig) -> Iterator[Difference]:
        """Compare encoder and decoder with diffusers' module, on a clip of several runs."""
        from diffusers import AutoencoderKLCogVideoX

        # The methods are attributes of diffusers' class.
        model: Any = AutoencoderKLCogVideoX(
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
            norm_num_groups=config.groups,
            scaling_factor=config.scaling_factor,
            temporal_compression_ratio=config.temporal_factor,
        ).eval()
        model.load_state_dict(dict(Floats(weights)))
        latents = self.random(5, config.latent_channels, 3, 2)
        frames = 4 * config.temporal_factor + 1
        model.num_sample_frames_batch_size = frames
        pixels = self.random(frames, 3, *(n * config.spatial_factor for n in (3, 2))).tanh()
        moments = model.encode(pixels.transpose(0, 1)[None]).latent_dist
        scaled = [
            part[0].transpose(0, 1) * config.scaling_factor for part in (moments.mean, moments.std)
        ]
        yield from self.compare("vae_encoder", [(tuple(pixels.shape), {"pixels": pixels}, scaled)])
        volume = latents.transpose(0, 1)[None] / config.scaling_factor
        expected = model.decode(volume).sample[0].transpose(0, 1)
        decoded = torch.from_numpy(self._decoded(latents, config))
        relative = float((decoded - expected).norm() / expected.norm())
        largest = float((decoded - expected).abs().max())
        yield Difference("vae_decoder", tuple(latents.shape), largest, relative)

    def _decoded(self, latents: Tensor, config: VaeConfig) -> np.ndarray:
        session = self.session("vae_decoder")
        names = [value.name for value in session.get_inputs()][1:]
        half = session.get_inputs()[1].type == "tensor(float16)"
        height, width = latents.shape[2:]
        caches = [
            np.zeros(
                (1, channels, 0, height << level, width << level),
                np.float16 if half else np.float32,
            )
            for channels, level in cache_shapes(config)
        ]
        pixels, at = [], 0
        for count in runs(len(latents)):
            feeds = dict(zip(names, caches, strict=True))
            part, *caches = session.run(
                None, {"latents": latents[at : at + count].numpy(), **feeds}
            )
            pixels.append(part)
            at += count
        return np.concatenate(pixels)
