# SPDX-License-Identifier: MPL-2.0
"""Training of the full network at a small size, and the paired folders for it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from starsr.data.media import read_clip, write_lossless
from starsr.data.pairs import pairs_in
from starsr.degradation import cli as degrade_cli
from starsr.export.rehearse import write_random_sources
from starsr.models.star.network import CONTROLNET, Star, StarConfig, declared_parameters
from starsr.models.star.text import TextConfig
from starsr.models.star.vae import VaeConfig
from starsr.models.weights import Weights, WeightsError, read
from starsr.training import cli
from starsr.training.star import StarOptions, StarTask, initialise

STAR = StarConfig(dim=32, head_dim=16, context_dim=32)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The files of random weights, by option."""
    options = write_random_sources(
        tmp_path_factory.mktemp("sources"), STAR, VaeConfig((32, 32, 64, 64)), TextConfig(32, 4, 3)
    )
    return dict(zip(options[::2], options[1::2], strict=True))


@pytest.fixture
def pairs(photos, tmp_path):
    target = tmp_path / "pairs"
    (photos / "photo0.txt").write_text("smooth noise", encoding="utf-8")
    arguments = [
        str(photos),
        str(target),
        "--preset",
        "light",
        "--frames",
        "4",
        "--width",
        "128",
        "--height",
        "128",
    ]
    assert degrade_cli.main(arguments) == 0
    return target


def test_degraded_folder(pairs, photos):
    found = pairs_in(pairs)
    assert [(p.name, p.text) for p in found] == [("photo0", "smooth noise"), ("photo1", "")]
    high, low = (read_clip(p) for p in (found[0].high, found[0].low))
    assert high.shape == (4, 128, 128, 3) and low.shape == (4, 32, 32, 3)
    before = {p: p.read_bytes() for p in pairs.rglob("*.mkv")}
    # A second run leaves the pairs alone, and one into another folder makes the same frames.
    arguments = ["--preset", "light", "--frames", "4", "--width", "128", "--height", "128"]
    assert degrade_cli.main([str(photos), str(pairs), *arguments]) == 0
    assert before == {p: p.read_bytes() for p in pairs.rglob("*.mkv")}
    assert degrade_cli.main([str(photos), str(pairs.parent / "again"), *arguments]) == 0
    assert np.array_equal(read_clip(pairs.parent / "again" / "lq" / "photo0.mkv"), low)


def test_clips_are_kept_without_loss(tmp_path):
    clip = np.random.default_rng(0).integers(0, 256, (3, 24, 40, 3), np.uint8)
    write_lossless(tmp_path / "clip.mkv", clip)
    assert np.array_equal(read_clip(tmp_path / "clip.mkv"), clip)
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mkv"]


def test_an_empty_folder_is_refused(tmp_path, capsys):
    assert degrade_cli.main([str(tmp_path), str(tmp_path / "out")]) == 1
    assert "no video and no photographs" in capsys.readouterr().err


def arguments(sources, pairs, checkpoint, init, iterations):
    sizes = ["--frames", "4", "--height", "80", "--width", "64", "--workers", "0"]
    parts = [
        "--vae",
        sources["--vae"],
        "--text-encoder",
        sources["--text-encoder"],
        "--init",
        str(init),
        "--cpu",
    ]
    return [
        "star",
        "--data",
        str(pairs),
        "--checkpoint",
        str(checkpoint),
        "--iterations",
        str(iterations),
        *sizes,
        *parts,
    ]


def test_only_controlnet_and_liem_are_trained_from_a_checkpoint_without_liem(
    sources, pairs, tmp_path
):
    state = torch.load(sources["--checkpoint"], weights_only=True)["state_dict"]
    init = tmp_path / "venhancer.safetensors"
    save_file({name: tensor for name, tensor in state.items() if ".local" not in name}, init)
    checkpoint = tmp_path / "star.pt"
    assert cli.main(arguments(sources, pairs, checkpoint, init, 2), STAR) == 0
    saved = torch.load(checkpoint, weights_only=True)
    names = {name.removeprefix("star.") for name in saved["model"]}
    assert names == {
        n for n in declared_parameters(STAR) if n.startswith(CONTROLNET) or ".local" in n
    }
    changed = sum(
        not torch.equal(saved["model"][f"star.{name}"], state[name].float())
        for name in names
        if ".local" not in name
    )
    assert changed > 0.9 * sum(".local" not in name for name in names)
    # A second run continues from the checkpoint.
    assert cli.main(arguments(sources, pairs, checkpoint, init, 3), STAR) == 0
    assert torch.load(checkpoint, weights_only=True)["iteration"] == 3


def test_df_loss_reaches_the_networks_through_the_decoder(sources, pairs):
    from starsr.export.sources import load_text_encoder, load_vae

    model, vae_config = load_vae(sources["--vae"])
    frozen = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    options = StarOptions(frames=4, height=80, width=64, workers=0)
    star = initialise(STAR, read(Path(sources["--checkpoint"])))
    tower = load_text_encoder(sources["--text-encoder"])
    task = StarTask(pairs, star, frozen, vae_config, tower, options, 0, torch.device("cpu"))
    batch = next(task.batches(0, 1))
    norms = {}
    for kind in ("none", "direct"):
        task.options = StarOptions(**{**vars(options), "df": type(options.df)(kind, beta=50.0)})
        task.module.zero_grad()
        loss, figures = task.loss(task.module, batch, torch.Generator().manual_seed(5))
        loss.backward()
        norms[kind] = torch.stack(
            [p.grad.norm() for p in task.module.parameters() if p.grad is not None]
        ).norm()
    assert figures["df"] > 0
    assert abs(norms["direct"] - norms["none"]) > 0.01 * norms["none"]


def test_recomputed_blocks_give_the_same_gradient(sources, pairs):
    from starsr.training.star import Wrapped

    star = initialise(STAR, read(Path(sources["--checkpoint"])))
    generator = torch.Generator().manual_seed(0)
    x, hint = (torch.randn((1, 4, 2, 10, 8), generator=generator) for _ in range(2))
    text, t = torch.randn((1, 77, 32), generator=generator), torch.tensor([300])
    gradients = []
    for checkpointing in (False, True):
        star.zero_grad()
        Wrapped(star, checkpointing)(x, t, hint, text).square().mean().backward()
        gradients.append(
            {name: p.grad.clone() for name, p in star.named_parameters() if p.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-3)


def test_wrong_starts_are_refused(sources, pairs, tmp_path, capsys):
    with pytest.raises(WeightsError, match="no checkpoint to start from"):
        initialise(STAR, Weights({"a": torch.zeros(1)}, "a.pt"))
    checkpoint = tmp_path / "star.pt"
    wrong = arguments(sources, pairs, checkpoint, sources["--checkpoint"], 1)
    wrong[wrong.index("--height") + 1] = "64"
    assert cli.main(wrong, STAR) == 1
    assert "16 modulo 64" in capsys.readouterr().err
    missing = arguments(sources, tmp_path, checkpoint, sources["--checkpoint"], 1)
    assert cli.main(missing, STAR) == 1
    assert "has no pairs" in capsys.readouterr().err
    assert isinstance(Star(STAR), torch.nn.Module)
