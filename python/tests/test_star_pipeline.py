# SPDX-License-Identifier: MPL-2.0
"""The whole of STAR in PyTorch against the authors' program."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import reference_cases
from small_star import noise_of, sampling_of, scaled
from starsr.models.star.pipeline import (
    Noise,
    Pipeline,
    Sampling,
    Trace,
    adain,
    denoise,
    evaluation_points,
    make_chunks,
    official_padding,
    sample,
)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def run(reference, golden_networks, request):
    """A run of `golden_e2e`: its settings, its tensors, and the pipeline with its weights."""
    networks = golden_networks
    listed = read(reference / "golden_e2e" / "index.json")["runs"][request.param]
    tensors = load_file(reference / "golden_e2e" / f"{request.param}.safetensors")
    weights = scaled(networks.star, listed["out2_scale"])
    minimum = (listed["best_h"], listed["best_w"])
    pipeline = Pipeline(weights, networks.vae, networks.config, networks.vae_config, minimum)
    return request.param, listed, tensors, pipeline


def largest(a, b):
    return float((a - b).abs().max())


@pytest.mark.parametrize("run", reference_cases("golden_e2e/index.json", "runs"), indirect=True)
@torch.no_grad()
def test_golden_e2e_each_evaluation(run):
    """Each evaluation starts from the reference's inputs.

    In the 14 evaluations of a random network, rounding grows without bound.
    """
    name, listed, tensors, pipeline = run
    sampling, hint = sampling_of(listed), tensors["z_lr"]
    times = evaluation_points(sampling)[1]
    chunks = make_chunks(hint.shape[2], sampling.length)
    if listed["chunks"] is not None:
        assert [list(c) for c in chunks] == listed["chunks"]

    def velocity(x, t, low, positive):
        return pipeline.velocity(x, t, low, tensors["y"] if positive else tensors["y_neg"])

    worst = 0.0
    for t, model_in, expected in zip(times, tensors["model_in"], tensors["denoised"], strict=True):
        ours = denoise(velocity, model_in, int(t), hint, chunks, sampling)
        worst = max(worst, largest(ours, expected) / float(expected.abs().max()))
    print(
        f"golden_e2e {name}: {len(times)} evaluations of {hint.shape[2]} frames, "
        f"worst {worst:.1e} relative"
    )
    assert worst <= 1e-3


@pytest.mark.parametrize("run", reference_cases("golden_e2e/index.json", "runs"), indirect=True)
def test_golden_e2e_from_frames_to_frames(run):
    name, listed, tensors, pipeline = run
    if listed["out2_scale"] == 1.0:
        # Comparable only up to the first evaluation, as the test above explains.
        padded = pipeline.upscale(
            tensors["lr_u8"].numpy(),
            tensors["y"],
            tensors["y_neg"],
            noise_of(tensors),
            Sampling("normal", 1, guidance_scale=1.0),
        )
        assert largest(padded.padded, tensors["padded"]) <= 1e-5
        assert largest(padded.hint, tensors["z_lr"]) <= 1e-4
        return
    result = pipeline.upscale(
        tensors["lr_u8"].numpy(),
        tensors["y"],
        tensors["y_neg"],
        noise_of(tensors),
        sampling_of(listed),
    )
    differences = {
        "canvas": largest(result.padded, tensors["padded"]),
        "hint": largest(result.hint, tensors["z_lr"]),
        "latents": largest(result.latents, tensors["latent_out"]),
        "frames": largest(result.frames, tensors["frames_THWC"] / 255),
        "colour-fixed frames": largest(result.fixed, tensors["fixed_THWC"] / 255),
    }
    print(f"golden_e2e {name}: " + ", ".join(f"{what} {d:.1e}" for what, d in differences.items()))
    assert max(differences.values()) <= 1e-3
    whole = (result.fixed * 255).to(torch.uint8).int()
    assert (whole - tensors["out_u8"].int()).abs().max() <= 1


def test_golden_sampler_timesteps(reference):
    for name, run in read(reference / "golden_sampler" / "index.json")["runs"].items():
        if "error" in run:
            continue
        sampling = Sampling(
            run["mode"], run.get("steps_arg") or 15, run.get("total_noise_levels") or 900
        )
        assert evaluation_points(sampling)[1].tolist() == run["t_model"], name


@pytest.mark.parametrize("name", reference_cases("golden_sampler/index.json", "runs"))
def test_golden_sampler_runs(reference, name):
    run = read(reference / "golden_sampler" / "index.json")["runs"][name]
    if "error" in run:
        # The official program cannot process such a clip; here it is one window.
        frames, length = (int(part.strip("chunkf")) for part in reversed(name.split("_")[1:]))
        assert make_chunks(frames, length) == [(0, frames)]
        return
    tensors = load_file(reference / "golden_sampler" / f"{name}.safetensors")
    sampling = Sampling(
        run["mode"],
        run.get("steps_arg") or 15,
        run.get("total_noise_levels") or 900,
        run["guide_scale"],
        run.get("guide_rescale", 0.2),
        run["max_chunk_len"],
    )
    text = {True: tensors["y"].double().mean(), False: tensors["y_neg"].double().mean()}

    def stand_in(x, t, hint, positive):
        y, tau = float(text[positive]), t / 1000
        v = (0.6 - 0.3 * tau + 0.05 * y) * x - (0.9 - 0.2 * tau + 0.02 * y) * hint + 0.03 * y
        return v + 0.1 * x.mean(2, keepdim=True)

    steps = tensors.get("noise", torch.zeros(0))
    noise = Noise(tensors["init_noise"], steps)
    assert (
        largest(sample(stand_in, tensors["hint"], noise, sampling, Trace()), tensors["out"]) <= 1e-4
    )


def test_golden_sampler_windows(reference):
    for case in read(reference / "golden_sampler" / "make_chunks.json"):
        chunks = [list(c) for c in make_chunks(case["frames"], case["max_chunk_len"])]
        assert chunks == case["chunks"], case


def test_golden_sampler_padding(reference):
    cases = read(reference / "golden_sampler" / "pad_to_fit.json")
    assert cases
    for case in cases:
        ours = official_padding(case["h"], case["w"], (720, 1280))
        assert ours == (case["w1"], case["w2"], case["h1"], case["h2"]), case


@pytest.mark.parametrize("kind", ["lr", "same"])
def test_golden_sampler_color_fix(reference, kind):
    tensors = load_file(reference / "golden_sampler" / "color_fix.safetensors")
    style = tensors[f"source_{kind}_TCHW_m1_1"].permute(0, 2, 3, 1) * 0.5 + 0.5
    ours = adain(tensors["target_THWC_0_255"] / 255, style)
    assert largest(ours, tensors[f"adain_{kind}"] / 255) <= 1e-5


def test_one_window_up_to_a_quarter_more():
    assert make_chunks(40, 32) == [(0, 40)]
    assert make_chunks(78, 32) == [(0, 32), (16, 48), (32, 64), (48, 78)]
    frames = np.arange(41)
    assert {f for start, end in make_chunks(41, 32) for f in frames[start:end]} == set(frames)


def test_adain_takes_over_mean_and_deviation():
    generator = torch.Generator().manual_seed(0)
    content = 0.5 + 0.05 * torch.randn((2, 32, 32, 3), generator=generator)
    style = 0.4 + 0.1 * torch.rand((2, 8, 8, 3), generator=generator)
    fixed = adain(content, style)
    torch.testing.assert_close(fixed.mean((1, 2)), style.mean((1, 2)), atol=1e-3, rtol=0)
    torch.testing.assert_close(fixed.std((1, 2)), style.std((1, 2)), atol=5e-3, rtol=0)
