# SPDX-License-Identifier: MPL-2.0
"""The operations that manifests state."""

import pytest
import torch
from torch import nn

from starsr.export import operations
from starsr.models.nano.network import BLOCK, NANO
from starsr.models.star import network
from starsr.models.star.network import STAR, StarConfig


def test_convolutions_take_the_same_for_each_pixel():
    convolution = nn.Conv3d(4, 6, 3, padding=1, device="meta")
    # 27 products and sums for each pair of channels, a latent of 8x8 pixels.
    expected = 2 * 27 * 4 * 6 / 64
    assert operations.fit(convolution, 4, 8, 5, [(3, 4), (7, 9)]) == [round(expected), 0.0]


def test_attention_takes_more_for_larger_frames():
    def attend(x):
        tokens = x.flatten(3).permute(0, 2, 3, 1)
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)

    a, b = operations.fit(attend, 4, 2, 3, [(6, 8), (12, 16)])
    # Two products of matrices with 4 columns: a latent with each latent of its frame.
    assert a == 0 and b == pytest.approx(2 * 2 * 4 / 4**2)


def test_nano_is_counted_as_its_card_says():
    a, b = operations.of_nano(NANO, BLOCK, 8)
    assert b == 0
    assert 640 * 480 * a == pytest.approx(19.2e9, rel=0.01)


@pytest.mark.parametrize("size", [(90, 160), (106, 192), (42, 64)])
def test_star_costs_what_is_fitted(size):
    """Also between and below the sizes that the fit goes through."""
    config = StarConfig(dim=32, head_dim=16, num_heads=2, context_dim=32)
    a, b = operations.of_star(config, 8, 4)
    assert a > 0 and b > 0
    height, width = size
    pixels = height * width * 64
    fitted = 4 * pixels * (a + b * pixels)

    def run(x):
        return prediction(x, config)

    exact = operations.count(lambda: run(operations.latents(4, 4, height, width)))
    assert fitted == pytest.approx(exact, rel=0.05)


def prediction(x, config):
    ops = operations.on_meta(network.declared_parameters(config))
    t = torch.zeros(1, dtype=torch.long, device="meta")
    text = torch.empty(1, 77, config.context_dim, device="meta")
    controls = network.controlnet(ops, x, t, x, text, config)
    return network.denoiser(ops, x, t, text, controls, config)


def test_the_whole_network_costs_258_teraflops():
    """For 32 frames of 1280x720 (docs/star.md)."""
    a, b = operations.of_star(STAR, 8, 32)
    pixels = 1280 * 720
    assert 32 * pixels * (a + b * pixels) == pytest.approx(258e12, rel=1e-3)
