# SPDX-License-Identifier: MPL-2.0
"""CogVideoX's autoencoder against the authors' results and diffusers, and its graphs."""

from collections import Counter

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from small_cogvideox import FOLDER, read_config, read_vae
from starsr.export.cogvideox_graphs import vae_graphs
from starsr.export.cogvideox_sources import load_vae
from starsr.models.cogvideox.vae import (
    Caches,
    VaeConfig,
    cache_shapes,
    declared_parameters,
    decode,
    encode,
    runs,
)
from starsr.models.weights import Arrays, WeightsError, compare_names
from starsr.ops.torch_ops import parameters_of
from starsr.ops.video_ops import VideoTorchOps


@pytest.fixture
def golden(reference):
    """The small autoencoder and the reference's tensors, frames first."""
    tensors = load_file(reference / FOLDER / "vae_small.safetensors")
    by_frame = {name: t[0].transpose(0, 1).contiguous() for name, t in tensors.items()}
    return *read_vae(reference), by_frame


def moments(config, golden):
    """Expected scaled mean and standard deviation."""
    mean, log_variance = golden["moments"].chunk(2, 1)
    std = torch.exp(0.5 * log_variance.clamp(-30, 20))
    return mean * config.scaling_factor, std * config.scaling_factor


def largest(a, b):
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())


def decoded_in_runs(config, latents, run):
    """Decode `latents` with `run(latents, caches)`, which returns pixels and caches."""
    pixels, caches, at = [], None, 0
    for count in runs(len(latents)):
        part, caches = run(latents[at : at + count], caches)
        pixels.append(part)
        at += count
    return torch.cat(pixels)


def decode_in_torch(weights, config, latents):
    def run(part, before):
        caches = Caches(before)
        return decode(VideoTorchOps(weights), part, caches, config), caches.kept

    return decoded_in_runs(config, latents, run)


def decode_in_onnx(session, config, latents):
    names = [i.name for i in session.get_inputs()][1:]

    def run(part, before):
        sizes = part.shape[2:]
        empty = [
            np.zeros((1, c, 0, sizes[0] << level, sizes[1] << level), np.float32)
            for c, level in cache_shapes(config)
        ]
        feeds = dict(zip(names, before or empty, strict=True))
        pixels, *after = session.run(None, {"latents": part.numpy(), **feeds})
        return torch.from_numpy(pixels), after

    return decoded_in_runs(config, latents, run)


def sessions(weights, config, folder):
    result = []
    for role, graph in vae_graphs(Arrays(weights), config, "fp32").items():
        path = folder / f"{role}.onnx"
        graph.save(path)
        result.append(onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]))
    return result


@torch.no_grad()
def test_golden_cogvideox_vae(golden):
    weights, config, io = golden
    wanted = {name: p.shape for name, p in declared_parameters(config).items()}
    compare_names(wanted, {n: tuple(t.shape) for n, t in weights.items()}, "the autoencoder")
    mean, std = encode(VideoTorchOps(weights), io["x"], config)
    expected_mean, expected_std = moments(config, io)
    z = mean + std * io["eps"]
    decoded = decode_in_torch(weights, config, io["latents"])
    differences = {
        "mean": largest(mean, expected_mean),
        "std": largest(std, expected_std),
        "sample": largest(z, io["z_lr"]),
        "pixels": largest(decoded, io["decoded"]),
    }
    print("golden_cogvideox vae: " + ", ".join(f"{k} {d:.1e}" for k, d in differences.items()))
    assert max(differences.values()) <= 1e-4


def test_golden_cogvideox_vae_in_onnx_runtime(golden, tmp_path):
    weights, config, io = golden
    encoder, decoder = sessions(weights, config, tmp_path)
    mean, std = encoder.run(None, {"pixels": io["x"].numpy()})
    expected_mean, expected_std = moments(config, io)
    decoded = decode_in_onnx(decoder, config, io["latents"])
    differences = {
        "mean": largest(mean, expected_mean),
        "std": largest(std, expected_std),
        "pixels": largest(decoded, io["decoded"]),
    }
    print(
        "golden_cogvideox vae in ONNX Runtime: "
        + ", ".join(f"{k} {d:.1e}" for k, d in differences.items())
    )
    assert max(differences.values()) <= 1e-4


@torch.no_grad()
def test_other_sizes_agree_with_diffusers(tmp_path):
    from diffusers import AutoencoderKLCogVideoX

    config = VaeConfig((32, 64, 64, 96), 2)
    torch.manual_seed(0)
    weights = parameters_of(declared_parameters(config))
    model = AutoencoderKLCogVideoX(
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        scaling_factor=config.scaling_factor,
    )
    model.load_state_dict(weights)
    model.num_sample_frames_batch_size = 100
    encoder, decoder = sessions(weights, config, tmp_path)
    for frames, height, width in ((1, 16, 8), (9, 8, 24), (17, 24, 16)):
        pixels = torch.randn(frames, 3, height, width).tanh()
        clip = pixels.transpose(0, 1)[None]
        posterior = model.encode(clip).latent_dist
        expected = posterior.mean[0].transpose(0, 1) * config.scaling_factor
        assert largest(encode(VideoTorchOps(weights), pixels, config)[0], expected) <= 1e-4
        assert largest(encoder.run(None, {"pixels": pixels.numpy()})[0], expected) <= 1e-4
        latents = torch.randn_like(expected)
        volume = latents.transpose(0, 1)[None] / config.scaling_factor
        restored = model.decode(volume).sample[0].transpose(0, 1)
        assert restored.shape == pixels.shape
        assert largest(decode_in_torch(weights, config, latents), restored) <= 1e-4
        assert largest(decode_in_onnx(decoder, config, latents), restored) <= 1e-4


def test_the_authors_file_is_read(reference, golden, tmp_path):
    weights, config, _ = golden
    file = reference / FOLDER / read_config(reference)["vae_small"]["files"][0]
    path = tmp_path / "3d-vae.pt"
    state = {**load_file(file), "loss.discriminator.weight": torch.zeros(3)}
    torch.save({"state_dict": state}, path)
    found, sizes = load_vae(path, "rotary")
    assert sizes == config and set(found) == set(weights)
    assert all(torch.equal(found[name].float(), weights[name]) for name in weights)
    torch.save({"x": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=r"encoder\.down_blocks\.0.*missing.*3d-vae\.pt"):
        load_vae(path, "rotary")


def test_runs_of_the_decoder():
    assert [runs(n) for n in (1, 3, 5, 7)] == [[1], [3], [3, 2], [3, 2, 2]]
    with pytest.raises(ValueError, match="4 latents"):
        runs(4)


def test_full_size_has_the_official_number_of_parameters():
    shapes = [p.shape for p in declared_parameters(VaeConfig()).values()]
    assert len(shapes) == 436
    assert sum(int(np.prod(shape)) for shape in shapes) == 215_583_907


def test_graphs_have_no_branches():
    config = VaeConfig((32, 32, 32, 32), 1)
    weights = Arrays(parameters_of(declared_parameters(config)))
    for role, graph in vae_graphs(weights, config, "fp16").items():
        kinds = Counter(node.op_type for node in graph.ops.nodes)
        print(f"{role}: {len(graph.ops.nodes)} nodes; {dict(kinds)}")
        assert not kinds.keys() & {"Loop", "If", "Scan", "Softmax"}
