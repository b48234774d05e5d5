"""Options of the commands that say what a release is worth. Imports nothing heavy, so that `--help` is instant."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.admin_options import LakeOptions
from pipelines.errors import UsageError
from pipelines.options import opt


@dataclass(frozen=True)
class EvaluateOptions(LakeOptions):
    """Teaches a small intent model with and without a release's labels, and says what they are worth on your test set.

    Example: sayagain evaluate --release LATEST --train taught.parquet --test test.parquet --lake ./lake
    Both files (Parquet, CSV or JSON Lines) have the columns utterance (or utt, text) and intent; the test set is labelled by
    people, and labels whose text is in it are left out. The labels stand beside as many random ones and beside the majority
    vote on the same texts, each with a 95 % interval (paired bootstrap), frequent intents (head) and the rest (tail) apart.
    The table is also kept in the lake, as worth/RELEASE/evaluate.json and report.html, and later reports show it.
    """

    release: str = opt("LATEST", "release id, or its beginning", metavar="RELEASE")
    train: str = opt("", "what your assistant is taught with now", metavar="FILE")
    test: str = opt("", "what it is judged by, labelled by people", metavar="FILE")
    locale: str = opt(
        "", "only labels of this locale; default: the locales in a column `locale` of the test set, else all", metavar="LOCALE"
    )
    budget: int = opt(
        0, "only the N labels that speak for most of the others and for what --train lacks; 0: all of them", kind=int, metavar="N"
    )
    seeds: int = opt(3, "models per set, each with another seed; their mean counts", kind=int, metavar="N")

    def validate(self) -> None:
        super().validate()
        for name in ("train", "test"):
            if not getattr(self, name):
                raise UsageError(f"--{name} is missing: name a Parquet, CSV or JSON Lines file with the columns utterance and intent")
        if self.budget < 0:
            raise UsageError(f"--budget {self.budget}: should be a number of labels, or 0 for all of them")
        if self.seeds < 1:
            raise UsageError(f"--seeds {self.seeds}: should be 1 or more")


@dataclass(frozen=True)
class AdaptOptions(LakeOptions):
    """Fine-tunes the text encoder on a release's pairs, distils it into a small fast one, and keeps what retrieves better.

    Example: sayagain adapt --release LATEST --lake ./lake --out ./adapted
    Trained on the train split alone, the best epoch chosen on the dev split. In a release of several languages half of what teaches
    are two texts of one intent in two languages, by their labels. Kept only if, on the test split, the nearest text is surely
    more often one of the same goal (or the nearest of another language one of the same intent; without labels, of the same
    goal) than with the model as it was, and surely less often in neither. Use it with `embedding.model = "./adapted/encoder"` (or /small) in the
    configuration. Exit 3: nothing got better, and nothing is kept.
    """

    release: str = opt("LATEST", "release id, or its beginning", metavar="RELEASE")
    out: str = opt("adapted", "folder for the models (safetensors)", metavar="DIR")
    model: str = opt("bundled:multilingual-e5-small", "bundled:..., a folder, or a hub name", metavar="MODEL")
    epochs: int = opt(1, "at most so many times over the pairs", kind=int, metavar="N")
    max_pairs: int = opt(10_000, "at most so many in an epoch, drawn by weight (ten minutes on two cores); 0: all", kind=int, metavar="N")
    seed: int = opt(0, "of the order of the pairs", kind=int, metavar="N")
    device: str = opt("auto", "auto takes CUDA, then MPS, then the CPU", choices=("auto", "cpu", "cuda", "mps"))

    def validate(self) -> None:
        super().validate()
        if self.epochs < 1:
            raise UsageError(f"--epochs {self.epochs}: should be 1 or more")
        if self.max_pairs < 0:
            raise UsageError(f"--max-pairs {self.max_pairs}: should be a number of pairs, or 0 for all of them")
