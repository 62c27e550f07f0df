# SPDX-License-Identifier: MPL-2.0

from collections import Counter
from itertools import product

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from starsr.bundle.reader import Bundle
from starsr.data.resize import bicubic
from starsr.evaluation.upscalers import plain
from starsr.export import student_integer
from starsr.export.cli import main
from starsr.export.student import HALVES, INTEGERS
from starsr.export.student_graph import export
from starsr.models.nano import student as networks
from starsr.models.nano.student import (
    Student,
    StudentConfig,
    bicubic_kernel,
    blend,
    neighbourhood,
    operations,
    save,
)
from starsr.training.contrast import MILD, lost_contrast
from starsr.training.mending import (
    GAIN,
    mended,
    moved,
    pattern,
    steadied,
    tint,
    with_contrast,
    without,
)

SMALL = StudentConfig(widths=(8, 8, 16), blocks=(1, 2, 1))


def lively(seed: int = 0, config: StudentConfig = SMALL) -> Student:
    """A student with weights that are nowhere zero."""
    torch.manual_seed(seed)
    student = Student(config)
    with torch.no_grad():
        for p in student.parameters():
            p.normal_(0, 0.1)
    return student.eval()


def test_an_untrained_student_is_bicubic():
    low = torch.rand(2, 3, 3, 8, 12)
    torch.testing.assert_close(Student(SMALL)(low), bicubic(low), atol=1e-6, rtol=0)


def test_the_kernel_is_the_bicubic_upscale_also_at_edges():
    low = torch.rand(1, 3, 5, 7)
    padded = torch.nn.functional.pad(low, (2, 2, 2, 2), mode="replicate")
    made = torch.nn.functional.pixel_shuffle(
        torch.nn.functional.conv2d(padded, bicubic_kernel()), 4
    )
    torch.testing.assert_close(made, bicubic(low), atol=1e-6, rtol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_frames_beyond_the_ends_are_those_at_the_ends(layout):
    frames = torch.arange(8.0)[:, None, None, None] + torch.tensor([0.0, 100.0])[:, None, None]
    around = neighbourhood(frames.expand(8, 2, 3, 5).contiguous(memory_format=layout), 2, 2)
    assert around.shape == (8, 10, 3, 5)
    assert around[0, :, 1, 1].tolist() == [0, 100, 0, 100, 0, 100, 1, 101, 2, 102]
    assert around[3, ::2, 0, 4].tolist() == [1, 2, 3, 3, 3]
    assert around[4, ::2, 0, 0].tolist() == [4, 4, 4, 5, 6]


def test_clips_of_a_batch_do_not_mix():
    student, clips = lively(), torch.rand(2, 4, 3, 8, 8)
    alone = torch.cat([student(clip[None]) for clip in clips])
    torch.testing.assert_close(student(clips), alone, atol=1e-5, rtol=0)


def test_the_layout_of_memory_does_not_matter():
    student, clips = lively(), torch.rand(2, 4, 3, 8, 8)
    expected = student(clips)
    torch.testing.assert_close(
        student.to(memory_format=torch.channels_last)(clips), expected, atol=1e-5, rtol=0
    )


def test_frames_of_a_clip_do():
    student, clip = lively(), torch.rand(1, 5, 3, 8, 8)
    other = clip.clone()
    other[:, 3] = 0
    assert (student(clip) - student(other))[:, 2].abs().max() > 1e-4


def test_work_and_size_of_the_default():
    config = StudentConfig()
    assert operations(config, 120, 160) < 12e9
    assert 1e6 < sum(p.numel() for p in Student(config).parameters()) < 4e6


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_the_graph_is_the_network_at_any_size(tmp_path, frames):
    student = lively()
    export(student, tmp_path / "student.onnx")
    session = onnxruntime.InferenceSession(
        str(tmp_path / "student.onnx"), providers=["CPUExecutionProvider"]
    )
    low = np.random.default_rng(0).random((frames, 3, 12, 20), np.float32)
    made = session.run(None, {"low": low})[0]
    assert made.shape == (frames, 3, 48, 80)
    expected = student(torch.from_numpy(low)[None])[0].clamp(0, 1).detach().numpy()
    np.testing.assert_allclose(made, expected, atol=2e-5)


def test_weights_are_kept_in_half_precision(tmp_path):
    student = lively()
    networks.save(tmp_path / "a.safetensors", student, {"note": "a test"})
    again = networks.load(tmp_path / "a.safetensors")
    assert again.config == SMALL
    for name, value in again.state_dict().items():
        assert torch.equal(value, student.state_dict()[name].half().float())


def test_a_file_without_a_student_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1)}, str(tmp_path / "a.safetensors"))
    with pytest.raises(ValueError, match="holds no weights of a student"):
        networks.load(tmp_path / "a.safetensors")


def test_blends_lie_between():
    first, second = lively(0), lively(1)
    half = blend(first, second, 0.5).state_dict()
    for name, value in half.items():
        torch.testing.assert_close(
            value, (first.state_dict()[name] + second.state_dict()[name]) / 2
        )
    low = torch.rand(1, 2, 3, 8, 8)
    torch.testing.assert_close(blend(first, second, 0.0)(low), first(low))
    with pytest.raises(ValueError, match="differ in their configuration"):
        blend(first, Student(StudentConfig(widths=(8, 8, 8))), 0.5)


def weights(folder, *students):
    for name, student in zip(("fidelity", "detail"), students, strict=True):
        save(folder / f"{name}.safetensors", student)


def test_the_bundle_blends_its_weights(tmp_path, capsys):
    ends = lively(1), lively(2)
    weights(tmp_path / "weights", *ends)
    target = tmp_path / "bundle"
    arguments = ["--weights", str(tmp_path / "weights"), "--output", str(target)]
    assert main(["student", *arguments, "--name", "small", "--detail", "0.25"]) == 0
    assert "differs from PyTorch" in capsys.readouterr().out
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (3, 10, 13, 3), np.uint8)
    with torch.no_grad():
        # The sides become multiples of 4.
        low = torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255
        padded = torch.nn.functional.pad(low, (0, 3, 0, 2), mode="replicate")
        for share, precision in product((None, 0.0, 1.0), ("float", "fp16")):
            made = Bundle(target, share, precision).upscale(clip)
            assert made.shape == (3, 40, 52, 3)
            student = blend(*ends, 0.25 if share is None else share)
            expected = student(padded[None])[0, :, :, :40, :52].clamp(0, 1)
            np.testing.assert_allclose(made, expected.permute(0, 2, 3, 1), atol=2e-3)
    # Nothing but the bicubic upscale computes in 32 bits.
    half = onnx.load(target / HALVES, load_external_data=False).graph.node
    assert sum(node.op_type == "Cast" for node in half) == 2


def photographs(folder):
    """Photographs of soft blobs, as many as give clips for ranges and for the cost."""
    rng, folder = np.random.default_rng(1), folder / "photos"
    folder.mkdir()
    for index in range(8):
        small = Image.fromarray(rng.integers(0, 256, (20, 28, 3), dtype=np.uint8))
        small.resize((420, 300), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


def test_integers_take_any_blend_and_cost_little(tmp_path, capsys):
    ends = lively(1), lively(2)
    weights(tmp_path / "weights", *ends)
    target = tmp_path / "bundle"
    given = ["--weights", str(tmp_path / "weights"), "--output", str(target)]
    assert main(["student", *given, "--calibrate", str(photographs(tmp_path))]) == 0
    assert "8-bit integers cost" in capsys.readouterr().out
    operators = Counter(node.op_type for node in onnx.load(target / INTEGERS).graph.node)
    # All convolutions but the bicubic one have weights and biases of their own in integers.
    layers = operators["Conv"] - 1
    assert layers == sum(isinstance(m, torch.nn.Conv2d) for m in ends[0].modules())
    assert operators["Round"] == operators["ReduceMax"] == layers
    clip = np.asarray(Image.open(tmp_path / "photos" / "3.png"))[None, :30, :40].repeat(3, 0)
    for share in (0.0, 0.3, 1.0):
        floats, integers = (
            Bundle(target, share, precision).upscale(clip) for precision in ("float", "int8")
        )
        error = np.sqrt(np.square(floats - integers).mean())
        added = np.sqrt(np.square(floats - plain(clip) / 255).mean())
        assert 0 < error < 0.1 * added


def test_integers_that_cost_much_make_no_bundle(tmp_path, capsys, monkeypatch):
    weights(tmp_path / "weights", lively(1), lively(2))
    target = tmp_path / "bundle"
    given = ["student", "--weights", str(tmp_path / "weights"), "--output", str(target)]
    given += ["--calibrate", str(photographs(tmp_path))]
    # Weights without training are no better in floats.
    monkeypatch.setattr(student_integer, "MOST_LOSS", -100.0)
    assert main(given) == 1
    assert "integers cost" in capsys.readouterr().err and not target.exists()
    assert main([*given[:-1], str(tmp_path / "weights")]) == 1
    assert "too few photographs below" in capsys.readouterr().err and not target.exists()


def test_weights_of_two_networks_make_no_bundle(tmp_path, capsys):
    other = StudentConfig(widths=(8, 8, 8), blocks=(1, 2, 1))
    weights(tmp_path / "weights", lively(), lively(config=other))
    target = tmp_path / "bundle"
    given = ["student", "--weights", str(tmp_path / "weights"), "--output", str(target)]
    assert main(given) == 1
    assert "differ in their configuration" in capsys.readouterr().err and not target.exists()


def flaw_of(student, low, flaw):
    """The mean over a clip of a component of what the student adds."""
    with torch.no_grad():
        phases = torch.nn.functional.pixel_unshuffle(student.upscale(low), 4)
        added = (phases - student.bicubic_phases(low))[:, :, 4:-4, 4:-4]
    return (flaw.colours().float() @ added.mean((0, 2, 3))).norm()


def test_patterns_and_tints_go_and_the_rest_stays():
    fidelity, detail = lively(3), lively(3)
    flaws = [tint(), pattern()]
    bases = [flaw.colours().float() for flaw in flaws]
    torch.testing.assert_close(torch.cat(bases) @ torch.cat(bases).T, torch.eye(3 + 27))
    with torch.no_grad():
        for basis in bases:
            detail.leave.bias += 0.05 * basis.T @ torch.randn(len(basis)).sign()
        fidelity.leave.bias += 0.05
    rng = torch.Generator().manual_seed(0)
    clips = [torch.rand(2, 3, 24, 32, generator=rng) * 0.2 + level for level in (0.1, 0.4, 0.7)]
    faithful = without(flaws[:1], fidelity, fidelity, clips, (1.0,))
    detailed = without(flaws, faithful, detail, clips)
    for low in clips:
        assert flaw_of(faithful, low, flaws[0]) < 0.5 * flaw_of(fidelity, low, flaws[0])
        for flaw in flaws:
            assert flaw_of(detailed, low, flaw) < 0.5 * flaw_of(detail, low, flaw)
    # All else of the last layer stays.
    for before, after, kinds in ((fidelity, faithful, bases[:1]), (detail, detailed, bases)):
        kept = torch.eye(48) - sum(basis.T @ basis for basis in kinds)
        torch.testing.assert_close(
            kept @ after.leave.weight.flatten(1),
            kept @ before.leave.weight.flatten(1),
            atol=1e-5,
            rtol=0,
        )
        assert torch.equal(after.enter.weight, before.enter.weight)


def test_a_slope_is_no_pattern():
    slope = torch.arange(4.0).repeat(4, 1).flatten()
    for plane in (slope, slope.view(4, 4).T.flatten()):
        assert (pattern().basis.float() @ plane).abs().max() < 1e-6


def test_what_moves_with_the_camera_does_not_change():
    wide = torch.rand(1, 3, 20, 24)
    frames = torch.cat([wide[:, :, 2 * f : 2 * f + 12, 4 - f : 20 - f] for f in range(4)])
    assert moved(frames, (2, -1)).shape == (3, 3, 10, 15)
    assert float(moved(frames, (2, -1)).abs().max()) == 0 < float(moved(frames, (0, 0)).abs().max())


def noisy_pans():
    """Clips under a moving camera, with noise that does not move along."""
    rng = torch.Generator().manual_seed(1)
    wide = torch.rand(3, 30, 30, generator=rng)
    pans = []
    for down, right in ((0, 0), (1, 0), (1, 1)):
        frames = [wide[:, down * f :, right * f :][:, :24, :24] for f in range(4)]
        noise = 0.1 * torch.randn(4, 3, 24, 24, generator=rng)
        pans.append((torch.stack(frames) + noise, (down, right)))
    return pans


def flicker_of(student, pans):
    """Return how much what a student makes of pans changes along the motion."""
    with torch.no_grad():
        phases = [torch.nn.functional.pixel_unshuffle(student.upscale(x), 4) for x, _ in pans]
    changes = zip(phases, pans, strict=True)
    return sum(float(moved(p, move).square().mean()) for p, (_, move) in changes)


def test_steadied_students_flicker_less():
    student, pans = lively(5), noisy_pans()
    _, mended_student = mended(student, student, [x for x, _ in pans], pans)
    assert flicker_of(mended_student, pans) < 0.9 * flicker_of(student, pans)
    steadier = steadied(student, student, pans)
    assert flicker_of(steadier, pans) < 0.9 * flicker_of(student, pans)
    assert torch.equal(steadier.enter.weight, student.enter.weight)


def test_contrast_comes_back_where_it_was_lost():
    student = lively(5)
    rng = torch.Generator().manual_seed(2)
    lows = [torch.rand(3, 3, 24, 28, generator=rng) for _ in range(4)]
    with torch.no_grad():
        before = [student(low[None])[0] for low in lows]

    def restored(lost, pans=()):
        clips = [(low, lost) for low in lows]
        return with_contrast(student, student, student, clips, pans)

    def error(changed):
        """Return how far it is from the goal, where the borders do not reach."""
        errors = []
        for low, made in zip(lows, before, strict=True):
            wanted = made + lost_contrast(made[None], torch.ones(1), GAIN)[0]
            with torch.no_grad():
                rest = changed(low[None])[0] - wanted
            errors.append(float(rest[..., 16:-16, 16:-16].square().mean()))
        return sum(errors)

    def tint_of(changed):
        with torch.no_grad():
            added = [
                changed(low[None])[0] - torch.pixel_shuffle(student.bicubic_phases(low), 4)
                for low in lows
            ]
        return sum(float(clip.mean((0, 2, 3)).abs().max()) for clip in added)

    raised = restored(1.0)
    assert torch.equal(raised.enter.weight, student.enter.weight)
    assert error(raised) < 0.9 * error(student)
    steady = restored(1.0, noisy_pans())
    assert flicker_of(steady, noisy_pans()) < 0.9 * flicker_of(raised, noisy_pans())
    # Clips that lost nothing lose their tint alone.
    kept = restored(MILD)
    assert tint_of(kept) < 0.5 * tint_of(student)
    assert tint_of(raised) < 0.5 * tint_of(student)
    colours = tint().colours().float()
    change = (kept.leave.weight - student.leave.weight).flatten(1)
    torch.testing.assert_close(colours.T @ colours @ change, change, atol=1e-5, rtol=0)
