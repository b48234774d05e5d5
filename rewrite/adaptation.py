"""Adapting a text encoder to a log's goals: contrast on the released pairs, distillation, and whether it was worth it.

- Fine-tuning: multiple negatives ranking (van den Oord et al. 2018; Henderson et al. 2017): texts of one goal come closer,
  the pair's own negative and the rest of the batch go further away. Texts of two languages that mean the same are told by the labels:
  goals of two languages are those that an encoder had joined itself, which teaches it nothing (and what is taught in each language alone
  drives them apart).
- Distillation: one vector per piece of text, and a text is the mean of its pieces (as model2vec and the static models of
  sentence-transformers): hundreds of times faster than a transformer. The vectors are the ridge regression of the teacher's,
  solved exactly; the pieces are learned from the texts (byte pair encoding), so it works in any script.
- Retrieval: is the nearest other text of the same goal, and the nearest of another language of the same intent?
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import polars as pl

from rewrite.worth import paired

BATCH = 64  # negatives of a pair: the rest of its batch; more than the usual goals of one batch adds little on a CPU
SCALE = 20.0  # inverse temperature of the cosine, the usual one of multiple negatives ranking
PIECES = 8_000  # of a small model: more than a release's distinct words, few enough to be seen more than once
RIDGE = 1.0  # a piece seen in one text is pulled half way to zero
MOST_TEXTS = 6_000  # of a distillation: its exact solution takes their square in memory (144 MB) and cube in time (a minute)

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]


def _plain(items: Iterable[Any], _total: int, _what: str) -> Iterable[Any]:
    return items


def fine_tune(
    model: Any,
    pairs: pl.DataFrame,
    epochs: int,
    seed: int,
    rate: float,
    progress: Progress = _plain,
    most: int = 0,
    score: Callable[[], float] | None = None,
    dtype: Any = None,
    across: pl.DataFrame | None = None,
) -> list[float]:
    """Train a SentenceTransformer in place on `anchor, positive, negative, weight, goal_id`, drawn by their weight.

    An epoch draws as many rows as there are, at most `most` (0: no limit); half of them from `across` (of `across_pairs`) if it has any.
    Rows of either, and rows with and without a negative, go in batches of their own.
    `score`: asked before the first epoch and after each, on texts that are neither trained on nor judged by; the weights of the
    highest answer stay (of equals the first), without it those of the last epoch. `dtype`: torch.bfloat16 where the device multiplies
    it in hardware (on a CPU with AMX 1.8 times as fast, gradients of a cosine of .9999). Returns the mean loss of each epoch; none
    when there is nothing to learn. The same pairs in the same order and seed give the same model on one machine.
    """
    import torch
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained or pairs.is_empty():
        return []
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(trained, lr=rate)
    loss_of = MultipleNegativesRankingLoss(model, scale=SCALE)
    rng = np.random.default_rng(seed)
    best, held = (score(), [p.detach().clone() for p in trained]) if score else (0.0, [])
    tables = [pairs] if across is None or across.is_empty() else [pairs, across]
    drawn = -(-min(most or pairs.height, pairs.height) // len(tables))
    losses = []
    for epoch in range(epochs):
        model.train()
        batches, total = [b for table in tables for b in _batches(table, rng, drawn)], 0.0
        batches = [batches[i] for i in rng.permutation(len(batches))]
        for batch in progress(batches, len(batches), f"epoch {epoch + 1}"):
            columns = [c for c in ("anchor", "positive", "negative") if batch[c].null_count() == 0]
            prompt = getattr(model, "prompts", {}).get(getattr(model, "default_prompt_name", None) or "", "")
            texts = [[prompt + t for t in batch[c]] for c in columns]
            features = [{k: v.to(model.device) if hasattr(v, "to") else v for k, v in model.preprocess(t).items()} for t in texts]
            with torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = loss_of(features, None)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        losses.append(total / max(len(batches), 1))
        model.eval()
        if score and (now := score()) > best:
            best, held = now, [p.detach().clone() for p in trained]
    with torch.no_grad():
        for weight, kept in zip(trained, held, strict=False):
            weight.copy_(kept)
    return losses


def _batches(pairs: pl.DataFrame, rng: np.random.Generator, most: int) -> list[pl.DataFrame]:
    """A draw of at most so many rows, by weight; no goal twice in a batch, as its texts would be each other's negatives."""
    out, share = [], min(1.0, most / pairs.height)
    for part in (pairs.filter(pl.col("negative").is_not_null()), pairs.filter(pl.col("negative").is_null())):
        if part.is_empty():
            continue
        weight = part["weight"].fill_null(0.0).to_numpy() + 1e-9
        drawn = part[rng.choice(part.height, max(round(part.height * share), 2), p=weight / weight.sum())]
        turn = drawn.with_columns(turn=pl.int_range(pl.len()).over("goal_id")).sort("turn", maintain_order=True)
        for (_,), same in turn.partition_by("turn", as_dict=True, maintain_order=True).items():
            out += [same.slice(i, BATCH) for i in range(0, same.height, BATCH) if same.height - i > 1]
    return out


def across_pairs(labels: pl.DataFrame, pairs: int, seed: int) -> pl.DataFrame:
    """`anchor, positive, negative (null), weight, goal_id`: so many draws of two texts of different locales with one label, each once.

    labels: `locale, utterance, intent`, in any order. An intent and two locales are drawn by the square root of the texts that the scarcer one
    has: between every text alike and every intent alike. `goal_id` is the intent, so that a batch holds each once. Empty where no
    intent has texts of two locales.
    """
    known = labels.drop_nulls("intent").sort("intent", "locale", "utterance").with_row_index("at")
    part = known.group_by("intent", "locale", maintain_order=True).agg(first=pl.col("at").min(), n=pl.len())
    two = part.join(part, on="intent", suffix="_p", maintain_order="left_right").filter(pl.col("locale") != pl.col("locale_p"))
    rng = np.random.default_rng(seed)
    root = two.select(pl.min_horizontal("n", "n_p").sqrt()).to_series().to_numpy()
    drawn = two[rng.choice(two.height, pairs, p=root / root.sum())] if two.height else two
    sides = [drawn[f"first{x}"].to_numpy() + (rng.random(drawn.height) * drawn[f"n{x}"].to_numpy()).astype(np.int64) for x in ("", "_p")]
    anchor, positive = (known["utterance"].gather(at).alias(name) for at, name in zip(sides, ("anchor", "positive"), strict=True))
    rows = pl.DataFrame([anchor, positive, drawn["intent"].alias("goal_id")]).filter(pl.col("anchor") != pl.col("positive"))
    return rows.unique(maintain_order=True).with_columns(negative=pl.lit(None, pl.String), weight=pl.lit(1.0))


def distil(texts: list[str], encode: Callable[[list[str]], np.ndarray]) -> Any:
    """A small SentenceTransformer whose vectors of `texts` are as near as can be to the teacher's, `encode(texts)` (len(texts), d).

    A piece starts as what the teacher says of it alone (as in model2vec), so a piece of few texts means something too. Raises
    ValueError without texts. Texts beyond `MOST_TEXTS` teach the pieces only.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if not texts:
        raise ValueError("distil: no texts; give those of a release")
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.train_from_iterator(sorted(texts), trainers.BpeTrainer(vocab_size=PIECES, special_tokens=["[UNK]"], show_progress=False))
    taught = texts[:MOST_TEXTS]
    pieces = np.zeros((len(taught), tokenizer.get_vocab_size()), np.float32)
    for row, encoding in enumerate(tokenizer.encode_batch(taught, add_special_tokens=False)):
        if encoding.ids:
            np.add.at(pieces[row], encoding.ids, 1 / len(encoding.ids))
    names = [(tokenizer.id_to_token(i) or "").replace("▁", " ").strip() for i in range(tokenizer.get_vocab_size())]
    alone = encode(names).astype(np.float32)
    # ridge around that, in its dual form: texts are fewer than pieces; a row is a mean, so its pieces weigh 1 / length
    within = pieces @ pieces.T
    within[np.diag_indices(len(taught))] += RIDGE / len(taught) * np.trace(within)
    left = encode(taught).astype(np.float32) - pieces @ alone
    weights = alone + pieces.T @ np.linalg.solve(within, left)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights), Normalize()], device="cpu")


def retrieval_texts(pairs: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    """`locale, text, goal_id, means` of the texts of pairs, each once, sorted; negatives have no goal (null) and are only in the way.

    labels: `locale, utterance, goal_id, intent` of the same split. `means` is what texts of two locales have in common: where an intent has texts of
    two, a text's own label, or the commonest one of its goal, and labelled texts are asked too; it is null where neither is known.
    Elsewhere it is the goal, and of a negative its own text.
    """
    sides = [pairs.select("goal_id", locale=f"locale_{side}", text=side) for side in ("anchor", "positive")]
    wrong = pairs.select(pl.lit(None, pl.String).alias("goal_id"), locale="locale_anchor", text="negative").drop_nulls("text").unique()
    known = labels.drop_nulls("intent").select("locale", "goal_id", "intent", text="utterance")
    by_label = bool(known.select((pl.col("locale").n_unique().over("intent") > 1).any()).item())
    if by_label:
        sides.append(known.select("goal_id", "locale", "text"))
    said = pl.concat(sides).unique().unique(["locale", "text"], keep="none")
    both = pl.concat([said, wrong.join(said, on=["locale", "text"], how="anti")])
    if by_label:
        common = known.drop_nulls("goal_id").group_by("goal_id").agg(of_goal=pl.col("intent").mode().min())
        both = both.join(known.select("locale", "text", "intent"), on=["locale", "text"], how="left").join(common, on="goal_id", how="left")
        means = pl.coalesce("intent", "of_goal")
    else:
        means = pl.coalesce("goal_id", "text")
    return both.select("locale", "text", "goal_id", means=means).sort("locale", "text")


def nearest(texts: pl.DataFrame, vectors: np.ndarray) -> pl.DataFrame:
    """`goal_id, means, hit, across` per row of `texts` (of `retrieval_texts`): is the nearest other text of its goal, does the nearest of another
    locale mean the same, among those of which it is known? Null where there is no such text. `vectors`: unit rows, one per row."""
    locales = texts["locale"].to_numpy()
    cosine = np.round(vectors @ vectors.T, 6)
    np.fill_diagonal(cosine, -2)
    other = locales[:, None] != locales
    found = {}
    for name, key, may in (("hit", "goal_id", np.ones_like(other)), ("across", "means", other & texts["means"].is_not_null().to_numpy())):
        keys = texts[key].fill_null("").to_numpy()
        same = (keys[:, None] == keys) & (keys != "") & may
        np.fill_diagonal(same, False)
        best = np.where(may, cosine, -2).argmax(axis=1) if len(texts) else np.zeros(0, np.int64)
        found[name] = pl.select(pl.when(pl.Series(same.any(axis=1))).then(pl.Series(keys[best] == keys))).to_series()
    return texts.select("goal_id", "means", **found)


def gain(before: pl.DataFrame, after: pl.DataFrame, column: str, seed: int) -> tuple[float, float, float] | None:
    """(gain, low, high) of a column of `nearest`, with its 95 % interval over goals (or over what texts mean), whose texts are right or wrong
    together. None where nothing was asked."""
    asked = before[column].is_not_null()
    if not asked.any():
        return None
    now, then = (frame.filter(asked)[column].cast(pl.Float64).to_numpy() for frame in (after, before))
    return paired(now, then, seed, before.filter(asked)["means" if column == "across" else "goal_id"].to_numpy())


def verdict(every: tuple[float, float, float] | None, across: tuple[float, float, float] | None) -> tuple[bool, str]:
    """(kept, why). Kept is what surely retrieves better, in all or across languages, and surely worse in neither: the interval of a
    gain lies above zero, and none below. Fewer texts are asked across languages, so a demand of both would be one of more text."""
    found = {"same goal": every, "across languages": across}
    worse = [name for name, g in found.items() if g and g[2] < 0]
    better = [name for name, g in found.items() if g and g[1] > 0]
    if worse:
        return False, f"surely worse: {' and '.join(worse)}"
    if better:
        return True, f"surely better: {' and '.join(better)}"
    return False, "no difference that could not be chance"
