# SPDX-License-Identifier: MPL-2.0
"""Loads the parts of a bundle of STAR on CogVideoX.

All come from local files, the text encoder also from the hub.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from starsr.export.cogvideox_manifest import SCALING_FACTORS
from starsr.export.sources import explained
from starsr.models import weights
from starsr.models.cogvideox import text, vae
from starsr.models.cogvideox.network import ROTARY, CogVideoXConfig
from starsr.models.cogvideox.text import T5Config
from starsr.models.cogvideox.vae import VaeConfig
from starsr.models.cogvideox.weights import CheckpointError, Merged, inner_names, merged
from starsr.models.weights import Floats, Weights, WeightsError, compare_names
from starsr.ops.video_ops import VideoTorchOps

VAE = "zai-org/CogVideoX-5b"
#: Widths of the released networks by the name of their size.
SIZES = {"5b": 3072, "2b": 1920}


def load_network(path: Path, size: str | None, text_length: int) -> tuple[Merged, CogVideoXConfig]:
    """Return parameters and sizes of the network.

    `path` is a checkpoint, or a folder of SwissArmyTransformer that holds one. `size` is one of
    `SIZES`, or anything if `None`. Raises `WeightsError` unless the tensors are exactly those of
    STAR on CogVideoX.
    """
    found = weights.read(_checkpoint(path))
    try:
        network, config = merged(found, None, text_length)
    except CheckpointError as e:
        raise WeightsError(f"{path}: {e}. {_advice(found)}") from e
    if size is not None and config.width != SIZES[size]:
        other = next((name for name, width in SIZES.items() if width == config.width), None)
        remedy = f"choose --size {other}" if other else "leave out --size"
        raise WeightsError(
            f"{path} has the width {config.width}, but CogVideoX-{size.upper()} has {SIZES[size]}: "
            f"take another checkpoint, or {remedy}"
        )
    return network, config


def _checkpoint(path: Path) -> Path:
    """Return the file of a checkpoint, which a folder names in its file `latest`."""
    if not path.is_dir():
        return path
    latest = path / "latest"
    if not latest.is_file():
        raise WeightsError(f"{path} holds no checkpoint: it has no file `latest`")
    iteration = latest.read_text(encoding="utf-8").strip()
    return path / iteration / "mp_rank_00_model_states.pt"


def _advice(found: Weights) -> str:
    names = inner_names(found)
    if any(name.startswith(("VideoControlNet.", "input_blocks.")) for name in names):
        return (
            "It looks like a checkpoint of STAR on I2VGen-XL: convert it without the word "
            "`cogvideox`"
        )
    if any(name.startswith("transformer_blocks.") for name in names):
        return (
            "It looks like plain CogVideoX in diffusers' layout, which has no LIEM: take STAR's "
            "own checkpoint"
        )
    plain = not any("spa_local" in name or "temp_local" in name for name in names)
    if plain and any(name.startswith("transformer.layers.") for name in names):
        return "It has no LIEM, so it looks like plain CogVideoX: take STAR's own checkpoint"
    return "Take STAR's checkpoint on CogVideoX"


def load_vae(path: Path, positions: str) -> tuple[Weights, VaeConfig]:
    """Return parameters and sizes of the autoencoder for networks with a kind of `positions`.

    `path` is the authors' file `3d-vae.pt`, or a folder in diffusers' layout with a `config.json`,
    or with a subfolder `vae` that has one. Raises `WeightsError`.
    """
    factor = SCALING_FACTORS[positions]
    if path.is_dir():
        found, config = _diffusers_vae(path)
    else:
        tensors = weights.read(path)
        renamed = {new: tensors[old] for old, new in vae.diffusers_names(tensors).items()}
        found = Weights(renamed, str(path))
        try:
            config = vae.config_of(found.shapes(), factor)
        except ValueError as e:
            raise WeightsError(
                f"{path} is not CogVideoX's autoencoder: {e}. Take the authors' 3d-vae.pt"
            ) from e
    wanted = {name: p.shape for name, p in vae.declared_parameters(config).items()}
    try:
        compare_names(wanted, found.shapes(), "CogVideoX's autoencoder")
    except ValueError as e:
        raise WeightsError(f"{path}: {e}. Take the autoencoder of {VAE}") from e
    if abs(config.scaling_factor - factor) > 1e-6:
        which = "5B" if positions == ROTARY else "2B"
        raise WeightsError(
            f"{path} scales latents by {config.scaling_factor:g}, but CogVideoX-{which} needs "
            f"{factor:g}: take the autoencoder of CogVideoX-{which}"
        )
    return found, config


def _diffusers_vae(path: Path) -> tuple[Weights, VaeConfig]:
    place = path if (path / "config.json").is_file() else path / "vae"
    if not (place / "config.json").is_file():
        raise WeightsError(
            f"{path} is no autoencoder: it has neither config.json nor vae/config.json, as {VAE} "
            "has"
        )
    described = json.loads((place / "config.json").read_text(encoding="utf-8"))
    kind = described.get("_class_name")
    if kind != "AutoencoderKLCogVideoX":
        raise WeightsError(
            f"{place} holds a {kind}, but CogVideoX's autoencoder is an AutoencoderKLCogVideoX: "
            f"take that of {VAE}"
        )
    files = sorted(place.glob("diffusion_pytorch_model*.safetensors"))
    if not files:
        raise WeightsError(f"{place} has no file diffusion_pytorch_model.safetensors")
    try:
        config = VaeConfig.of(described)
    except (KeyError, TypeError, ValueError) as e:
        raise WeightsError(f"{place / 'config.json'} lacks a size: {weights.reason(e)}") from e
    return weights.read(files[0]), config


def load_embedding(path: Path, config: CogVideoXConfig) -> Tensor:
    """Return the embedding `[1,text_length,text_dim]` of a prompt in 32 bits.

    The file has one tensor, of this shape or without the first axis, as T5's encoder gives it for
    a prompt that is padded to its full length. Raises `WeightsError`.
    """
    found: Mapping[str, Tensor] = weights.read(path)
    wanted = (config.text_length, config.text_dim)
    if len(found) != 1:
        raise WeightsError(f"{path} has {len(found)} tensors, but the embedding of a prompt is one")
    (embedding,) = found.values()
    if tuple(embedding.shape) not in (wanted, (1, *wanted)):
        raise WeightsError(
            f"{path} has the shape {list(embedding.shape)}, but an embedding is {list(wanted)}: "
            "take that of T5 v1.1 XXL's encoder"
        )
    if not torch.isfinite(embedding).all():
        raise WeightsError(f"{path} has values that are not finite: compute it in 32 or bf16 bits")
    return embedding.float().reshape(1, *wanted)


def find_tokenizer(path: Path) -> Path | None:
    """Return the file `spiece.model` of T5's tokenizer, or `None` where there is none.

    `path` is the file, or a folder in transformers' layout that has it, perhaps in a subfolder
    `tokenizer`.
    """
    places = (path, path / "spiece.model", path / "tokenizer" / "spiece.model")
    return next((place for place in places if place.is_file()), None)


def read_tokenizer(path: Path) -> bytes:
    """Return the file of T5's tokenizer at `path`, see `find_tokenizer`. Raises `WeightsError`."""
    file = find_tokenizer(path)
    if file is None:
        raise WeightsError(
            f"{path} has no tokenizer, neither spiece.model nor tokenizer/spiece.model: take the "
            f"folder `tokenizer` of {VAE}"
        )
    data = file.read_bytes()
    if any(piece not in data for piece in (b"<pad>", b"</s>")) or data.lstrip()[:1] in b"{<":
        raise WeightsError(f"{file} is not T5's tokenizer: take spiece.model of {VAE}")
    return data


@dataclass
class TextEncoder:
    """The weights of T5's encoder."""

    weights: Weights
    config: T5Config

    @torch.no_grad()
    def embed(self, tokens: Tensor) -> Tensor:
        """Embed tokens `[B,length]` as `[B,length,width]` in 32 bits.

        Reads one parameter at a time.
        """
        ops = VideoTorchOps(Floats(self.weights))
        return text.encode_text(ops, tokens, tokens.shape[1], self.config)


def find_text_encoder(source: str) -> Path:
    """Return the folder of a text encoder, perhaps of its subfolder `text_encoder`.

    `source` is a local folder, or a hub repository with the subfolders `text_encoder` and
    `tokenizer`. Raises `WeightsError`.
    """
    folder = Path(source)
    if folder.exists():
        return folder
    from huggingface_hub import snapshot_download

    parts = ["text_encoder/*", "tokenizer/spiece.model"]
    includes = " ".join(f'--include "{part}"' for part in parts)
    with explained(source, "text encoder", f"hf download {VAE} {includes} --local-dir FOLDER"):
        return Path(snapshot_download(source, allow_patterns=parts))


def load_text_encoder(path: Path, config: CogVideoXConfig) -> TextEncoder:
    """Return T5 v1.1's encoder for a network.

    `path` is a folder in transformers' layout, or with a subfolder `text_encoder` that is one.
    Raises `WeightsError`.
    """
    place = path / "text_encoder" if (path / "text_encoder").is_dir() else path
    files = sorted(place.glob("*.safetensors")) or sorted(place.glob("pytorch_model*.bin"))
    if not files:
        raise WeightsError(f"{place} has no weights of a text encoder, *.safetensors")
    parts = [weights.read(file) for file in files]
    found = Weights(weights.Joined(parts, without=text.NEEDLESS), str(place))
    try:
        encoder = text.config_of(found.shapes())
        wanted = {name: p.shape for name, p in text.declared_parameters(encoder).items()}
        compare_names(wanted, found.shapes(), "T5 v1.1's encoder")
    except ValueError as e:
        raise WeightsError(f"{place}: {e}. Take the text encoder of {VAE}, T5 v1.1 XXL") from e
    if encoder.width != config.text_dim:
        raise WeightsError(
            f"{place} gives embeddings of width {encoder.width}, but the network takes "
            f"{config.text_dim}: take the text encoder of {VAE}, T5 v1.1 XXL"
        )
    return TextEncoder(found, encoder)


def embed_prompt(
    prompt: str, encoder: TextEncoder, tokenizer: bytes | None, config: CogVideoXConfig
) -> Tensor:
    """Return the embedding `[1,text_length,text_dim]` of a prompt, in 32 bits.

    An empty one needs no `tokenizer`, the content of `spiece.model`. Raises `WeightsError`.
    """
    if not prompt:
        return encoder.embed(text.padded([], config.text_length)[0])
    if tokenizer is None:
        raise WeightsError("--prompt needs T5's tokenizer: name its spiece.model with --tokenizer")
    tokens, cut = text.tokenize(prompt, tokenizer, config.text_length)
    if cut:
        raise WeightsError(f"the prompt is too long by {cut} tokens: make it shorter")
    return encoder.embed(tokens)
