# SPDX-License-Identifier: MPL-2.0
"""The student of nano: its clips, its losses and its training."""

import csv
import shlex
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from starsr.data.resize import bicubic
from starsr.models.nano import student as networks
from starsr.training import distill, perceptual
from starsr.training.contrast import MILD, by_loss, lost_contrast, severity
from starsr.training.critic import Critic, changes, critic_loss, realism_loss, slices
from starsr.training.moving import (
    MIX,
    MovingClips,
    Reel,
    crop_frame,
    free_film,
    mix_with,
    panned,
    shrink,
    warped,
)
from starsr.training.nano import taken
from starsr.training.student_losses import (
    Balance,
    charbonnier,
    fidelity_loss,
    plain_losses,
    unsteadiness,
)
from starsr.training.supply import Supply


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """A photograph of soft blobs."""
    rng = np.random.default_rng(3)
    small = Image.fromarray(rng.integers(0, 256, (20, 25, 3), dtype=np.uint8))
    return np.asarray(small.resize((500, 400), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def media(tmp_path_factory, photo):
    folder = tmp_path_factory.mktemp("media")
    for index in range(2):
        Image.fromarray(np.roll(photo, 40 * index, 1)).save(folder / f"{index}.png")
    return folder


def along(frames: np.ndarray, moves: np.ndarray) -> float:
    """Mean difference in levels of each frame and the next one moved back."""
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    later, inside = warped(pictures[1:], torch.from_numpy(moves).float())
    return float(((pictures[:-1] - later).abs() * inside).sum() / (3 * inside.sum()))


@pytest.mark.parametrize("make", [free_film, panned])
@pytest.mark.parametrize("seed", [0, 2, 3])
def test_films_move_as_they_say(photo, make, seed):
    film = make(photo, 5, 96, np.random.default_rng(seed))
    assert film.frames.shape == (5, 96, 96, 3) and film.moves.shape == (4, 3, 3)
    still = np.broadcast_to(np.eye(3), (4, 3, 3))
    assert along(film.frames, film.moves) < 0.7
    assert along(film.frames, still) > 2 * along(film.frames, film.moves)


@pytest.mark.parametrize("turns", [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)])
def test_moves_turn_with_their_crop(photo, turns):
    film = free_film(photo, 3, 128, np.random.default_rng(1))
    corner, side = torch.tensor([[8, 20]]), 64
    flags = torch.tensor([[0, *turns]]).bool()
    places = torch.tensor([[0, 0, *corner[0].tolist()]])
    crop = taken(torch.from_numpy(film.frames)[None], places, flags, 3, side, 1)
    frame = crop_frame(corner, flags, side).double()
    moved = frame @ torch.from_numpy(film.moves) @ torch.linalg.inv(frame)
    assert along(crop[0].numpy(), moved.numpy()) < 0.7


def test_clips_are_a_function_of_their_index(media):
    clips = MovingClips(media, 10, frames=3, side=16, seed=5)
    for index in (0, 7):
        for first, second in zip(clips[index], clips[index], strict=True):
            assert torch.equal(first, second)
    low, high, moves = clips[3]
    assert low.shape == (3, 16, 16, 3) and high.shape == (3, 64, 64, 3) and moves.shape == (2, 3, 3)


def test_a_reel_draws_from_what_it_has(media):
    clips = MovingClips(media, 10, frames=4, side=16)
    reel = Reel(8, clips, torch.device("cpu"))
    for index in range(2):
        reel.put(*clips[index])
    low, high, moves = reel.draw(6, 3, 8, torch.Generator().manual_seed(0))
    assert (
        low.shape == (6, 3, 3, 8, 8)
        and high.shape == (6, 3, 3, 32, 32)
        and moves.shape == (6, 2, 3, 3)
    )
    assert torch.isfinite(moves).all()


def test_clean_shrinks_are_whole_levels(media):
    high = torch.rand(5, 2, 3, 32, 32)
    low = shrink(high, torch.Generator().manual_seed(0))
    assert low.shape == (5, 2, 3, 8, 8)
    torch.testing.assert_close(low * 255, (low * 255).round())
    assert (low.mean((2, 3, 4)) - high.mean((2, 3, 4))).abs().max() < 0.05


def test_clips_may_be_few_and_of_a_given_mix(media):
    assert mix_with(MIX["heavy"]) == pytest.approx(MIX)
    mix = mix_with(0.6)
    assert mix["heavy"] == 0.6 and sum(mix.values()) == pytest.approx(1)
    assert mix["light"] / mix["video"] == pytest.approx(MIX["light"] / MIX["video"])
    with pytest.raises(ValueError, match="no share"):
        mix_with(1.0)
    clips = MovingClips(media, 3, frames=3, side=16, mix=mix)
    supply = Supply(clips, torch.device("cpu"), pool=5, frames=2, workers=0, clean=0.1)
    try:
        # More are asked for than there are.
        counts = [len(supply.batch(8, 8)[0]) for _ in range(3)]
    finally:
        supply.close()
    assert counts == [8, 8, 8] and supply.reel.made == 3


def test_severity_is_what_clips_lost_beside_pixels():
    torch.manual_seed(0)
    high = torch.rand(1, 2, 3, 64, 64).repeat(3, 1, 1, 1, 1)
    small = torch.nn.functional.avg_pool2d(high.flatten(0, 1), 4).unflatten(0, high.shape[:2])
    noise = torch.randn_like(small) * torch.tensor([0.0, 0.25, 1.0]).reshape(3, 1, 1, 1, 1)
    lost = severity(bicubic(small + noise), high)
    assert lost[0] == 0 and 0.05 < lost[1] < 0.95 and lost[2] == 1


def test_contrast_is_given_back_in_proportion_to_what_was_lost():
    edge = torch.linspace(-20, 20, 48).sigmoid().expand(3, 2, 3, 40, 48)
    added = lost_contrast(edge, torch.tensor([MILD, 0.6, 1.0]), 2.0)
    assert not added[0].any()
    torch.testing.assert_close(2 * added[1], added[2])
    assert added[2].diff(dim=-1)[0, 0, 20, 23] > 0.01
    # What is flat, or rises evenly, stays.
    even = torch.linspace(0, 1, 48).expand(1, 2, 3, 40, 48)
    assert lost_contrast(even, torch.ones(1), 2.0)[..., 8:-8].abs().max() < 1e-5
    assert by_loss((2.0, 0.5), torch.tensor([0.0, 1.0])).flatten().tolist() == [2.0, 0.5]


def test_precision_is_what_was_asked_for():
    device = torch.device("cpu")
    for precision in ("bf16", "fp32", "auto"):
        with distill.autocast(device, precision):
            made = torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype
        has_amx = torch.cpu.get_capabilities().get("amx_bf16", False)
        fast = precision == "bf16" or (precision == "auto" and has_amx)
        assert made == (torch.bfloat16 if fast else torch.float32)


def test_errors_that_move_with_the_picture_are_steady():
    """An error that is part of the scene is steady, the same one that stays in place is not."""
    wide = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), (32, 40), mode="bicubic")[
        0
    ].clamp(0, 1)
    flaw = (
        torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), (32, 40), mode="bicubic")[0] * 0.1
    )
    target = torch.stack([wide[:, :, 2 * f : 2 * f + 32] for f in range(3)])[None]
    moves = torch.eye(3).repeat(1, 2, 1, 1)
    moves[..., 0, 2] = -2
    with_it = target + torch.stack([flaw[:, :, 2 * f : 2 * f + 32] for f in range(3)])[None]
    in_place = target + flaw[:, :, :32]
    changes_of = [unsteadiness(clip, target, moves) for clip in (with_it, in_place)]
    means = [float((change.abs() * mask).sum() / mask.sum()) for change, mask in changes_of]
    assert means[0] < 1e-5 < 1e-3 < means[1]


def test_a_perfect_clip_has_no_loss():
    target = torch.rand(2, 3, 3, 32, 32)
    moves = torch.eye(3).repeat(2, 2, 1, 1)
    losses = plain_losses(target, target, moves)
    assert all(
        float(loss) <= float(charbonnier(torch.zeros(()))) + 1e-6 for loss in losses.values()
    )
    worse, _ = fidelity_loss(target + 0.1 * torch.rand_like(target), target, moves)
    best, figures = fidelity_loss(target, target, moves)
    assert best < worse and figures["psnr"] > 80


def test_gradients_get_their_shares():
    balance = Balance()
    gradients = {"pixel": torch.ones(100), "other": 1e-4 * torch.ones(100)}
    total = balance.total("pixel", gradients, {"other": 0.5})
    torch.testing.assert_close(total, torch.full((100,), 1.5))


def test_critics_see_frames_changes_and_slices():
    clips, plain = torch.rand(2, 4, 3, 32, 32), torch.rand(2, 4, 3, 32, 32)
    seen = changes(clips, plain)
    assert seen.shape == (4, 12, 32, 32)
    torch.testing.assert_close(seen[0, 3:6], 3 * (clips[0, 1] - clips[0, 0]))
    rows, columns = torch.tensor([5, 9]), torch.tensor([1])
    along_time = slices(clips, rows, columns)
    assert along_time.shape == (2 * 3, 3, 4, 32)
    torch.testing.assert_close(along_time[1], clips[0, :, :, 9].transpose(0, 1))
    torch.testing.assert_close(along_time[4], clips[0, ..., 1].transpose(0, 1))


def test_critics_learn_what_is_made():
    torch.manual_seed(0)
    critic = Critic(8)
    optimizer = torch.optim.Adam(critic.parameters(), 1e-3)
    real, fake = torch.rand(2, 3, 3, 32, 32), torch.full((2, 3, 3, 32, 32), 0.5)
    places = torch.arange(4)
    losses = []
    for _ in range(30):
        loss = critic_loss(critic(real, fake, places, places), critic(fake, fake, places, places))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]
    assert realism_loss(critic(fake, fake, places, places)) > realism_loss(
        critic(real, fake, places, places)
    )


def test_the_perceptual_network_survives_packing(tmp_path):
    torch.manual_seed(0)
    network = perceptual.Perceptual()
    save_file(perceptual.packed(network.state_dict()), str(tmp_path / "f.safetensors"))
    again = perceptual.load(tmp_path / "f.safetensors", torch.device("cpu"))
    a, b = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(again(a, b), network(a, b), rtol=0.05, atol=1e-4)
    assert float(again(a, a).max()) < 1e-6
    a.requires_grad_()
    again(a, b).sum().backward()
    assert a.grad.abs().max() > 0


class Ticks:
    """A clock by which each step of training takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1
        return self.now


SIZES = shlex.split(
    "--clip-side 16 --sides 16 16 --batches 2 2 --frames 3 --pool 8 --workers 0 --device cpu"
)


def test_a_stopped_run_goes_on_through_all_stages(tmp_path, media, monkeypatch):
    torch.manual_seed(0)
    features, run = tmp_path / "features.safetensors", tmp_path / "run"
    save_file(perceptual.packed(perceptual.Perceptual().state_dict()), str(features))
    words = ["--data", str(media), "--output", str(run), "--features", str(features), *SIZES]
    words += ["--fidelity", str(3 / 60), "--detail", str(2 / 60)]
    words += ["--contrast", str(2 / 60), "--save-every", "1"]
    monkeypatch.setattr(distill, "time", Ticks())
    taken_steps, softs = {"fidelity": 0, "contrast": 0}, []

    def stop_in_second(name):
        step = getattr(distill, f"{name}_step")

        def stopped(*arguments):
            taken_steps[name] += 1
            if name == "contrast":
                softs.append(arguments[1].state_dict())
            if taken_steps[name] == 2:
                raise KeyboardInterrupt
            return step(*arguments)

        monkeypatch.setattr(distill, f"{name}_step", stopped)

    def state():
        return torch.load(run / "student.pt", weights_only=True)

    def weights(name):
        return networks.load(run / f"{name}.safetensors").state_dict()

    stop_in_second("fidelity")
    with pytest.raises(KeyboardInterrupt):
        distill.main(words)
    assert (state()["stage"], state()["iteration"], state()["seconds"]) == (0, 1, 1)
    early = weights("fidelity")
    stop_in_second("contrast")
    with pytest.raises(KeyboardInterrupt):
        distill.main(words)
    assert (state()["stage"], state()["iteration"]) == (2, 1)

    # The steps that are left, and no more.
    assert distill.main(words) == 0
    assert taken_steps == {"fidelity": 2 + 2, "contrast": 2 + 1}
    stages = [early, *map(weights, ("fidelity", "soft", "detail"))]
    for before, after in pairwise(stages):
        assert any(not torch.equal(before[name], after[name]) for name in before)
    for stage, iterations in ((0, 3), (1, 2), (2, 2)):
        with (run / f"log-{stage}.csv").open(encoding="utf-8") as file:
            assert int(list(csv.DictReader(file))[-1]["iteration"]) == iterations
    # What the third stage learns from is the same after the stop.
    for soft in softs:
        assert all(torch.equal(w, stages[2][name]) for name, w in soft.items())

    # A run that is over stays as it is.
    over = state()
    assert (over["stage"], over["iteration"]) == (2, 2)
    assert distill.main(words) == 0
    assert taken_steps == {"fidelity": 2 + 2, "contrast": 2 + 1} and state()["iteration"] == 2
    for name, weight in over["student"].items():
        assert torch.equal(state()["student"][name], weight)


@pytest.mark.parametrize(
    ("minutes", "name", "step"),
    [
        (("1", "0", "0"), "fidelity", "fidelity"),
        (("0", "1", "0"), "detail", "detail"),
        (("0", "0", "1"), "detail", "contrast"),
    ],
)
def test_a_run_starts_from_weights(tmp_path, media, monkeypatch, minutes, name, step):
    features, start = tmp_path / "features.safetensors", tmp_path / "start"
    save_file(perceptual.packed(perceptual.Perceptual().state_dict()), str(features))
    start.mkdir()
    student = networks.Student()
    networks.save(start / f"{name}.safetensors", student)

    def stopped(run, *_):
        weights = networks.load(start / f"{name}.safetensors").state_dict()
        assert all(torch.equal(w, weights[part]) for part, w in run.student.state_dict().items())
        raise KeyboardInterrupt

    monkeypatch.setattr(distill, f"{step}_step", stopped)
    words = ["--data", str(media), "--features", str(features), "--start", str(start), *SIZES]
    for option, minute in zip(("--fidelity", "--detail", "--contrast"), minutes, strict=True):
        words += [option, minute]
    words += ["--output", str(tmp_path / "run")]
    with pytest.raises(KeyboardInterrupt):
        distill.main(words)


def test_missing_media_and_features_are_said(tmp_path, media, capsys):
    words = ["--output", str(tmp_path / "run"), *SIZES]
    assert distill.main(["--data", str(tmp_path / "nowhere"), *words]) == 1
    assert "no photographs below" in capsys.readouterr().err
    assert distill.main(["--data", str(media), *words, "--fidelity", "0.001"]) == 1
    assert "give --features" in capsys.readouterr().err
    fresh = ["--output", str(tmp_path / "other"), "--start", str(tmp_path)]
    assert distill.main(["--data", str(media), *words, *fresh]) == 1
    assert "fidelity.safetensors" in capsys.readouterr().err
