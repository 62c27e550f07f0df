# SPDX-License-Identifier: MPL-2.0
"""Where the parts of a STAR bundle come from: the authors' checkpoint, the autoencoder through diffusers, the text encoder
through OpenCLIP; each from a local file or folder, or from the hub."""

import json
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from starsr.ops.torch_ops import TorchOps
from starsr.models import weights
from starsr.models.star import network, text, vae
from starsr.models.star.network import CONTROLNET, StarConfig
from starsr.models.star.text import TextConfig
from starsr.models.star.vae import VaeConfig
from starsr.models.weights import Floats, Weights, WeightsError, compare_names

VAE = "stabilityai/stable-video-diffusion-img2vid"
TEXT_ENCODER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


def load_star(path: Path, config: StarConfig = StarConfig()) -> Weights:
    """The weights of ControlNet and U-Net; `WeightsError` unless they are those of STAR's I2VGen-XL models, all of them."""
    found = weights.read(path)
    shapes = found.shapes()
    try:
        network.check_names(config, shapes)
    except ValueError as e:
        raise WeightsError(f"{path}: {e}. {_advice(shapes, config)}") from e
    return found


def _advice(shapes: dict, config: StarConfig) -> str:
    wanted = network.declared_parameters(config)
    missing = wanted.keys() - shapes.keys()
    if any(name.startswith(("model.diffusion_model.", "transformer_blocks.", "transformer.")) for name in shapes):
        return "It looks like a CogVideoX model; only STAR's models on I2VGen-XL (light_deg.pt, heavy_deg.pt) can be converted"
    if missing and all(".local" in name for name in missing):
        return (
            "All but LIEM is there, so it looks like VEnhancer's checkpoint, which STAR was trained from; take STAR's own "
            "(light_deg.pt or heavy_deg.pt)"
        )
    if any(name.startswith(("module.", "_orig_mod.")) for name in shapes):
        return "Its names carry a prefix of a training wrapper; save the state dict of the bare network"
    if not any(name.startswith(CONTROLNET) for name in shapes):
        return "It has no ControlNet; take one of STAR's checkpoints (light_deg.pt, heavy_deg.pt)"
    return "Take one of STAR's checkpoints on I2VGen-XL (light_deg.pt, heavy_deg.pt)"


@contextmanager
def _explained(source: str, what: str, download: str):
    """Turns what diffusers and the hub raise into one sentence, without their warnings to their own developers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except WeightsError:
        raise
    except Exception as e:
        reason = " ".join(str(e).split())[:240] or type(e).__name__
        raise WeightsError(
            f"the {what} {source} could not be loaded ({reason}). Name an existing local folder, or a repository that the hub "
            f"has and this machine can reach; elsewhere `{download}` fetches it into a folder"
        ) from e


def load_vae(source: str):
    """diffusers' `AutoencoderKLTemporalDecoder` in 32 bits and its `VaeConfig`, from a folder with its `config.json` (or with a
    subfolder `vae` that has one) or a hub repository with a subfolder `vae`."""
    from diffusers import AutoencoderKLTemporalDecoder

    folder, subfolder = Path(source), "vae"
    if folder.is_dir():
        if (folder / "config.json").is_file():
            subfolder = None
        elif not (folder / "vae" / "config.json").is_file():
            raise WeightsError(f"{folder} is no autoencoder: it has neither config.json nor vae/config.json, as {VAE} has")
        place = folder / (subfolder or "")
        kind = json.loads((place / "config.json").read_text(encoding="utf-8")).get("_class_name")
        if kind != "AutoencoderKLTemporalDecoder":
            raise WeightsError(
                f"{place} holds a {kind}, but STAR's autoencoder is an AutoencoderKLTemporalDecoder: take that of {VAE}"
            )
        variants = ["fp16"] if any(place.glob("*.fp16.*")) else [None]
    elif folder.exists():
        raise WeightsError(f"{folder} is a file: name the folder that holds it and config.json")
    else:
        variants = ["fp16", None]
    with _explained(source, "autoencoder", f'hf download {VAE} --include "vae/*" --local-dir FOLDER'):
        for variant in variants:
            try:
                model = AutoencoderKLTemporalDecoder.from_pretrained(
                    source, subfolder=subfolder, variant=variant, torch_dtype=torch.float32, low_cpu_mem_usage=False
                )
                break
            except OSError:
                if variant == variants[-1]:
                    raise
    config = VaeConfig.of(model.config)
    wanted = {name: p.shape for name, p in vae.declared_parameters(config).items()}
    try:
        compare_names(wanted, {name: tuple(t.shape) for name, t in model.state_dict().items()}, "STAR's autoencoder")
    except ValueError as e:
        raise WeightsError(f"{source}: {e}. Take the autoencoder of {VAE}") from e
    return model.eval(), config


@dataclass
class TextTower:
    """The weights of OpenCLIP's text tower."""

    weights: Weights
    config: TextConfig

    @torch.no_grad()
    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embeddings `[B,77,width]` in 32 bits of token ids `[B,77]`."""
        return text.encode_text(TorchOps(Floats(self.weights)), tokens, self.config)

    def module(self) -> nn.Module:
        """OpenCLIP's own module with the weights, for comparisons."""
        from open_clip.transformer import TextTransformer

        size = self.config
        tower = TextTransformer(
            context_length=text.CONTEXT, vocab_size=text.VOCABULARY, width=size.width, heads=size.heads, layers=size.layers
        )
        missing, extra = tower.load_state_dict({name: self.weights[name].float() for name in self.weights}, strict=False)
        last = f"transformer.resblocks.{size.layers - 1}."
        unused = [name for name in missing if not name.startswith(last) and name not in ("text_projection", "attn_mask")]
        if unused or extra:
            raise WeightsError(f"{self.weights.source}: OpenCLIP's text tower misses {unused} and does not know {extra}")
        return tower.eval()


def embed_with(tower: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Embedding `[B,77,width]` of `tokens` `[B,77]` through the blocks of OpenCLIP's tower as STAR uses them (SPEC A.3)."""
    x = tower.token_embedding(tokens) + tower.positional_embedding
    mask = torch.full((text.CONTEXT, text.CONTEXT), float("-inf")).triu(1)
    for block in tower.transformer.resblocks[:-1]:
        x = block(x, attn_mask=mask)
    return tower.ln_final(x)


def load_text_encoder(source: str) -> TextTower:
    """OpenCLIP's text tower, from a file of weights, a folder that holds one (and, for other sizes than ViT-H-14's, its
    `open_clip_config.json`) or a hub repository."""
    import open_clip
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
    from open_clip.pretrained import download_pretrained_from_hf

    place, sizes = Path(source), open_clip.get_model_config("ViT-H-14")["text_cfg"]
    if place.is_dir():
        config = place / "open_clip_config.json"
        if config.is_file():
            sizes = json.loads(config.read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
        files = [place / name for name in (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME) if (place / name).is_file()]
        if not files:
            raise WeightsError(f"{place} holds neither {HF_SAFE_WEIGHTS_NAME} nor {HF_WEIGHTS_NAME}, as {TEXT_ENCODER} does")
        place = files[0]
    elif not place.exists():
        with _explained(source, "text encoder", f"hf download {TEXT_ENCODER} {HF_SAFE_WEIGHTS_NAME} --local-dir FOLDER"):
            place = Path(download_pretrained_from_hf(source))
    config = TextConfig(sizes["width"], sizes["heads"], sizes["layers"])
    wanted = {name: p.shape for name, p in text.declared_parameters(config).items()}
    found = weights.read(place).select(wanted)
    try:
        compare_names(wanted, found.shapes(), "OpenCLIP's ViT-H-14 text tower")
    except ValueError as e:
        raise WeightsError(f"{place}: {e}. Take the text encoder {TEXT_ENCODER}") from e
    return TextTower(found, config)
