# SPDX-License-Identifier: MPL-2.0
"""Loads the parts of a STAR bundle, each from local files or from the hub.

They are the authors' checkpoint, the autoencoder through diffusers and the text encoder through
OpenCLIP.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from starsr.models import weights
from starsr.models.star import network, text, vae
from starsr.models.star.network import CONTROLNET, STAR, StarConfig
from starsr.models.star.text import TextConfig
from starsr.models.star.vae import VaeConfig
from starsr.models.weights import Floats, Weights, WeightsError, compare_names
from starsr.ops.torch_ops import TorchOps

VAE = "stabilityai/stable-video-diffusion-img2vid"
TEXT_ENCODER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


def load_star(path: Path, config: StarConfig = STAR) -> Weights:
    """Return the weights of ControlNet and U-Net.

    Raises `WeightsError` unless they are exactly those of STAR's models on I2VGen-XL.
    """
    found = weights.read(path)
    shapes = found.shapes()
    try:
        network.check_names(config, shapes)
    except ValueError as e:
        raise WeightsError(f"{path}: {e}. {_advice(shapes, config)}") from e
    return found


def _advice(shapes: Mapping[str, tuple[int, ...]], config: StarConfig) -> str:
    wanted = network.declared_parameters(config)
    missing = wanted.keys() - shapes.keys()
    other = ("model.diffusion_model.", "transformer_blocks.", "transformer.")
    if any(name.startswith(other) for name in shapes):
        return (
            "It looks like a CogVideoX model; only STAR's models on I2VGen-XL (light_deg.pt, "
            "heavy_deg.pt) can be converted"
        )
    if missing and all(".local" in name for name in missing):
        return (
            "Only LIEM is missing, so it looks like VEnhancer's checkpoint, from which STAR was "
            "trained; take STAR's own (light_deg.pt or heavy_deg.pt)"
        )
    if any(name.startswith(("module.", "_orig_mod.")) for name in shapes):
        return (
            "Its names carry a prefix of a training wrapper; save the state dict of the bare "
            "network"
        )
    if not any(name.startswith(CONTROLNET) for name in shapes):
        return "It has no ControlNet; take one of STAR's checkpoints (light_deg.pt, heavy_deg.pt)"
    return "Take one of STAR's checkpoints on I2VGen-XL (light_deg.pt, heavy_deg.pt)"


@contextmanager
def explained(source: str, what: str, download: str) -> Iterator[None]:
    """Turn what diffusers and the hub raise into one sentence, and hide their warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except WeightsError:
        raise
    except Exception as e:
        reason = " ".join(str(e).split())[:240] or type(e).__name__
        raise WeightsError(
            f"the {what} {source} could not be loaded ({reason}). Name an existing local folder, "
            "or a repository of the hub that this machine can reach; elsewhere "
            f"`{download}` fetches it into a folder"
        ) from e


def load_vae(source: str) -> tuple[nn.Module, VaeConfig]:
    """Return diffusers' `AutoencoderKLTemporalDecoder` in 32 bits and its configuration.

    `source` is a folder with a `config.json` or a subfolder `vae` that has one, or a hub
    repository with a subfolder `vae`. Raises `WeightsError`.
    """
    from diffusers import AutoencoderKLTemporalDecoder

    subfolder, variants = _vae_place(source)
    download = f'hf download {VAE} --include "vae/*" --local-dir FOLDER'
    with explained(source, "autoencoder", download):
        for variant in variants:
            try:
                model = AutoencoderKLTemporalDecoder.from_pretrained(
                    source,
                    subfolder=subfolder,
                    variant=variant,
                    torch_dtype=torch.float32,
                    low_cpu_mem_usage=False,
                )
                break
            except OSError:
                if variant == variants[-1]:
                    raise
    config = VaeConfig.of(model.config)
    wanted = {name: p.shape for name, p in vae.declared_parameters(config).items()}
    found = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    try:
        compare_names(wanted, found, "STAR's autoencoder")
    except ValueError as e:
        raise WeightsError(f"{source}: {e}. Take the autoencoder of {VAE}") from e
    return model.eval(), config


def _vae_place(source: str) -> tuple[str | None, list[str | None]]:
    """Return the subfolder of an autoencoder, and the variants of its weights to try."""
    folder = Path(source)
    if not folder.exists():
        return "vae", ["fp16", None]
    if not folder.is_dir():
        raise WeightsError(f"{folder} is a file: name the folder that holds it and config.json")
    subfolder = None if (folder / "config.json").is_file() else "vae"
    place = folder / (subfolder or "")
    if not (place / "config.json").is_file():
        raise WeightsError(
            f"{folder} is no autoencoder: it has neither config.json nor vae/config.json, as {VAE} "
            "has"
        )
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    kind = config.get("_class_name")
    if kind != "AutoencoderKLTemporalDecoder":
        raise WeightsError(
            f"{place} holds a {kind}, but STAR's autoencoder is an AutoencoderKLTemporalDecoder: "
            f"take that of {VAE}"
        )
    return subfolder, ["fp16"] if any(place.glob("*.fp16.*")) else [None]


@dataclass
class TextTower:
    """The weights of OpenCLIP's text tower."""

    weights: Weights
    config: TextConfig

    @torch.no_grad()
    def embed(self, tokens: Tensor) -> Tensor:
        """Embed token ids `[B,77]` as `[B,77,width]` in 32 bits."""
        return text.encode_text(TorchOps(Floats(self.weights)), tokens, self.config)

    def module(self) -> nn.Module:
        """Return OpenCLIP's own module with the weights, for comparisons."""
        from open_clip.transformer import TextTransformer

        size = self.config
        tower: nn.Module = TextTransformer(
            context_length=text.CONTEXT,
            vocab_size=text.VOCABULARY,
            width=size.width,
            heads=size.heads,
            layers=size.layers,
        )
        state = {name: self.weights[name].float() for name in self.weights}
        missing, extra = tower.load_state_dict(state, strict=False)
        last = f"transformer.resblocks.{size.layers - 1}."
        needless = ("text_projection", "attn_mask")
        unused = [name for name in missing if not name.startswith(last) and name not in needless]
        if unused or extra:
            raise WeightsError(
                f"{self.weights.source}: OpenCLIP's text tower misses {unused} and does not know "
                f"{extra}"
            )
        return tower.eval()


def embed_with(tower: nn.Module, tokens: Tensor) -> Tensor:
    """Embed `tokens` `[B,77]` through the blocks of OpenCLIP's tower that STAR uses.

    Returns `[B,77,width]`.
    """
    # The blocks are attributes of OpenCLIP's class, which is untyped.
    open_clip: Any = tower
    x: Tensor = open_clip.token_embedding(tokens) + open_clip.positional_embedding
    mask = torch.full((text.CONTEXT, text.CONTEXT), float("-inf")).triu(1)
    for block in open_clip.transformer.resblocks[:-1]:
        x = block(x, attn_mask=mask)
    result: Tensor = open_clip.ln_final(x)
    return result


def load_text_encoder(source: str) -> TextTower:
    """Return OpenCLIP's text tower.

    `source` is a file of weights, a folder that holds one, or a hub repository. A folder may also
    hold an `open_clip_config.json` for other sizes than ViT-H-14's. Raises `WeightsError`.
    """
    import open_clip
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
    from open_clip.pretrained import download_pretrained_from_hf

    place, sizes = Path(source), open_clip.get_model_config("ViT-H-14")["text_cfg"]
    if place.is_dir():
        config = place / "open_clip_config.json"
        if config.is_file():
            sizes = json.loads(config.read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
        names = (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)
        files = [place / name for name in names if (place / name).is_file()]
        if not files:
            raise WeightsError(
                f"{place} holds neither {names[0]} nor {names[1]}, as {TEXT_ENCODER} does"
            )
        place = files[0]
    elif not place.exists():
        download = f"hf download {TEXT_ENCODER} {HF_SAFE_WEIGHTS_NAME} --local-dir FOLDER"
        with explained(source, "text encoder", download):
            place = Path(download_pretrained_from_hf(source))
    tower = TextConfig(sizes["width"], sizes["heads"], sizes["layers"])
    wanted = {name: p.shape for name, p in text.declared_parameters(tower).items()}
    found = weights.read(place).select(wanted)
    try:
        compare_names(wanted, found.shapes(), "OpenCLIP's ViT-H-14 text tower")
    except ValueError as e:
        raise WeightsError(f"{place}: {e}. Take the text encoder {TEXT_ENCODER}") from e
    return TextTower(found, tower)
