"""Corrective words ("no", "I said"), found per locale from the log: new words of the turn that comes after a failed one.

A word is corrective when it is more often new in the turn after texts that failed than after texts that were served. The
log odds ratio is that of Monroe et al. (2008, Fightin' Words), but its lower bound: thousands of words are tried. A word
of a topic comes after texts of that topic; a corrective one after anything: no word of the texts before is much more frequent
there than it is anyway. Only hashed columns and numbers are kept, of words that k users said.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
import scipy.sparse as sp

from rewrite import ngrams
from rewrite.text import coded

Words = tuple[tuple[int, ...], tuple[float, ...]]
"""Columns of `ngrams.words`, ascending, and how much each speaks for failed (log odds ratio, > 0)."""
_Z = 3.0
"""Standard errors below the estimate: among some thousand words chance finds about one."""
_SMOOTH = 1.0  # votes, shared between failed and served as all votes are
_AFTER = 8
"""Different texts that a word must come after."""
_TOPIC = 0.25
"""A word before it is at most this much more frequent (difference of shares) than before any word."""


class Said(NamedTuple):
    """Words of turns, and what is new in the turns after them: 0/1, both of shape (turns, 2**BITS)."""

    words: sp.csr_matrix
    new: sp.csr_matrix

    def at(self, rows: np.ndarray) -> Said:
        return Said(self.words[rows], self.new[rows])


def said(turns: pl.DataFrame) -> sp.csr_matrix:
    """Words of every turn, 0/1, shape (turns, 2**BITS). Pairs of characters stand in for words where a script has none."""
    texts, code = coded(turns["key"])
    return ngrams.words(texts.to_list())[code]


def new_words(said: sp.csr_matrix, scored: pl.DataFrame) -> sp.csr_matrix:
    """Of `said`, what the next turn has and this one has not; nothing where nothing comes next. `scored`: pairs of the turns."""
    near = scored.filter((pl.col("lag") == 1) & ~pl.col("is_retry"))
    i, j = near["i"].to_numpy(), near["j"].to_numpy()
    after = said[j]
    after -= after.multiply(said[i])
    after.eliminate_zeros()
    at = sp.csr_matrix((np.ones(len(i), np.float32), (i, np.arange(len(i)))), shape=(said.shape[0], len(i)))
    return (at @ after).tocsr()


def learn(said: Said, text: np.ndarray, user: np.ndarray, served: np.ndarray, weight: np.ndarray, k: int) -> Words:
    """The corrective words of the turns of `said`: `text` and `user` number each row's, `served` is P(its text is served),
    `weight` its vote."""
    new = said.new
    entry = np.repeat(np.arange(new.shape[0]), np.diff(new.indptr))
    entry = entry[weight[entry] > 0]
    word, column = _numbered(new.indices[np.repeat(weight > 0, np.diff(new.indptr))])
    n, followed = len(column), (np.diff(new.indptr) > 0) & (weight > 0)
    if not n:
        return (), ()
    mass = np.array([(weight * p)[followed].sum() for p in (1.0 - served, served)])
    votes = np.stack([np.bincount(word, (weight * p)[entry], n) for p in (1.0 - served, served)])
    votes += _SMOOTH * (mass / mass.sum())[:, None]
    rest = np.maximum(mass[:, None] + _SMOOTH - votes, _SMOOTH)
    ratio = np.log(votes[0] / rest[0]) - np.log(votes[1] / rest[1])
    bound = ratio - _Z * np.sqrt((1.0 / votes).sum(axis=0))
    users, after = (np.bincount(_distinct(word, other[entry]), minlength=n) for other in (user, text))
    keep = np.flatnonzero((bound > 0) & (users >= k) & (after >= _AFTER))
    keep = keep[_excess(said, column[keep], weight * (1.0 - served) * followed) <= _TOPIC]
    return tuple(column[keep].tolist()), tuple(bound[keep].tolist())


def says(new: sp.csr_matrix, words: Words) -> np.ndarray:
    """How much the most corrective new word speaks for failed, shape (rows,); 0 without any."""
    table = np.zeros(1 << ngrams.BITS)
    table[list(words[0])] = words[1]
    x = sp.csr_matrix((table[new.indices], new.indices, new.indptr), shape=new.shape)
    return x.max(axis=1).toarray().ravel() if new.shape[0] else np.zeros(0)


def _numbered(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    column, number = np.unique(values, return_inverse=True)
    return number, column


def _distinct(word: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The words of all distinct pairs (word, other)."""
    width = int(other.max(initial=0)) + 1
    return np.unique(word.astype(np.int64) * width + other) // width


def _excess(said: Said, column: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Per word of `column`, by how much the share of any word is greater before it than before all, at most."""
    before = sp.diags(weight) @ said.words
    base = np.asarray(before.sum(axis=0)).ravel() / max(weight.sum(), 1e-12)
    follows = said.new[:, column].T.tocsr()
    of = (follows @ before).tocsr()
    total = np.maximum(follows @ weight, 1e-12)
    of.data = of.data / np.repeat(total, np.diff(of.indptr)) - base[of.indices]
    return of.max(axis=1).toarray().ravel() if len(column) else np.zeros(0)
