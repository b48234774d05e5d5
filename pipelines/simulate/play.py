"""Users talk to the assistant: one block of users on one day, as arrays, with no loop over turns.

Rates follow what is published about voice assistants and what the project's evaluation worlds show: about 37 % of requests
fail, half of the failures are asked again after some eight seconds, the next request comes after some forty-seven.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.simulate.world import NO_MATCH, Language, generator

REQUESTS = 6  # at most in a session
ATTEMPTS = 4  # at most for one request
ONE_MORE = 0.5  # chance of a further request in the session
SIMILAR, ROUTINE = 0.13, 0.12  # next request: same intent with another value; one that tends to follow; else anything
SAME_WORDING = 0.85  # of similar requests: the wording is kept and only the value changes
TASTE = 0.5  # share of first wordings that are this user's usual ones
REPEAT, STRESS = 0.2, 0.3  # of requests asked again: in the very same words; in the same with a word more ("i said ...")
ASKS_AGAIN = np.array([1.0, 0.9, 0.8])  # times the user's patience, after the first, second and third failure
ZIPF_FORMS = 1.7  # a wording is misheard as its usual form half of the times, as acoustics have it
CHANGED_MIND = 0.003  # asks again although served
LEAVES = 0.3  # of those who give up on a request: the session ends there
INTERLEAVED = 0.06  # of last attempts: the next request comes first
PASSING_ERROR = 0.004  # turns that fail for no reason of their own
TYPED_SLIP = 0.4  # typed turns are corrupted this much as often as spoken ones are misheard
NO_SESSION = 0.015  # sessions that the log has no id for
SECOND = 1_000_000  # timestamps are in microseconds
DAY = 86_400 * SECOND
APART = 1_860 * SECOND  # two sessions of a user are further apart than any usual session gap
BUSIEST = 40  # sessions of a user in a day; more would not fit, APART as they are
LATEST = 900.0  # seconds: the longest pause inside a session

COMPLETED, NO_MATCH_STATUS, ERROR = 0, 1, 2  # indices into STATUS
STATUS = ("completed", "no_match", "error")

_draws = generator(7, "quantiles")
ASR_RIGHT = np.round(1 - _draws.beta(1.5, 9.0, 4096), 3)  # tables to draw from: ten times faster than drawing anew
ASR_WRONG = np.round(1 - _draws.beta(2.2, 5.0, 4096), 3)


@dataclass(frozen=True)
class Users:
    """A block of users of one locale: arrays (U,)."""

    first: int  # number of the first one
    activity: np.ndarray  # sessions relative to the mean
    patience: np.ndarray  # chance to ask again after a first failure
    taste: np.ndarray  # 0..1: decides usual wordings
    spoken: np.ndarray  # bool: talks rather than types
    capitals: np.ndarray  # bool: types a capital first letter
    holdout: np.ndarray  # bool: never rewritten


@dataclass(frozen=True)
class Serving:
    """What the assistant does with texts at present. T texts of the language, F foreign ones that rewrites lead to."""

    texts: list[str]  # T + F
    served: np.ndarray  # int (T,): what is interpreted instead, or the text itself
    rewrite_ids: list[str | None]  # T
    meaning: np.ndarray  # int (T + F,)
    works: np.ndarray  # bool (T + F,)
    confidence: np.ndarray  # float (T + F,)

    @classmethod
    def of(cls, language: Language, rewrites: dict[str, tuple[str, str]] | None = None) -> Serving:
        """With live rewrites: source key -> (target, rewrite id). Sources that nobody says are passed over."""
        texts, n = list(language.texts), len(language.texts)
        served = np.arange(n)
        ids: list[str | None] = [None] * n
        rows = sorted((rewrites or {}).items())
        said, known = language.number([source for source, _ in rows]), language.number([target for _, (target, _) in rows])
        for s, t, (_, (target, rewrite)) in zip(said.tolist(), known.tolist(), rows, strict=True):
            if s < 0:
                continue
            if t < 0:  # nobody says it: the assistant does not know it either
                texts.append(target)
            served[s], ids[s] = (t if t >= 0 else len(texts) - 1), rewrite
        foreign = len(texts) - n
        return cls(
            texts, served, ids,
            np.concatenate([language.meaning, np.full(foreign, NO_MATCH)]),
            np.concatenate([language.works, np.zeros(foreign, bool)]),
            np.concatenate([language.confidence, np.full(foreign, 0.2)]),
        )  # fmt: skip


@dataclass(frozen=True)
class Turns:
    """Turns as numbers, by session and time: arrays (n,)."""

    user: np.ndarray  # within the block
    session: np.ndarray  # within the block and day
    has_session: np.ndarray
    time: np.ndarray  # microseconds since 1970
    goal: np.ndarray
    said: np.ndarray  # text
    served: np.ndarray  # text; the same as `said` when not rewritten
    meaning: np.ndarray
    status: np.ndarray
    confidence: np.ndarray
    asr: np.ndarray  # NaN when typed
    barge_in: np.ndarray
    feedback: np.ndarray  # 0: none
    success: np.ndarray
    misheard: np.ndarray
    attempt: np.ndarray
    again_of: np.ndarray  # position of the attempt before; -1
    rephrase: np.ndarray  # asked again in other words

    def __len__(self) -> int:
        return self.user.size


def users(locale: str, seed: int, first: int, count: int, holdout: float, kind: str = "user") -> Users:
    """The users numbered `first` to `first + count - 1`. The same on every day and in every epoch."""
    rng = generator(seed, locale, kind, first)
    typed = rng.random(count) < 0.2
    return Users(
        first,
        rng.lognormal(-0.72, 1.2, count),  # mean 1; the busiest hundredth makes about a tenth of the turns
        np.where(rng.random(count) < 0.5, 0.38, 0.78),
        rng.random(count),
        ~typed,
        typed & (rng.random(count) < 0.5),
        rng.random(count) < holdout,
    )


def play(
    language: Language,
    serving: Serving,
    heard: np.ndarray,
    who: Users,
    sessions_a_day: float,
    midnight: int,
    mishear: float,
    rng: np.random.Generator,
) -> Turns:
    """One day of one block of users.

    Args:
        heard: int (G, W, V), what wordings are misheard as on this day.
        sessions_a_day: of a user of mean activity.
        midnight: start of the day, microseconds since 1970.
        mishear: share of spoken turns that are misheard.
    """
    count = np.minimum(rng.poisson(who.activity * sessions_a_day), BUSIEST)
    owner = np.repeat(np.arange(count.size), count)
    goal, wording, n_requests = _requests(language, who, owner, rng)

    inside = np.arange(REQUESTS) < n_requests[:, None]
    session = np.nonzero(inside)[0]
    asked = _attempts(language, serving, heard, who, owner[session], goal[inside], wording[inside], mishear, rng)

    gave_up = (asked["left"]) & (rng.random(session.size) < LEAVES)
    kept = _none_before(gave_up, session)
    made = np.arange(ATTEMPTS) < (asked["attempts"] * kept)[:, None]
    request, attempt = np.nonzero(made)
    n = request.size
    turn = {k: asked[k][made] for k in ("said", "served", "misheard", "success", "status", "meaning")}
    session, goal = session[request], goal[inside][request]
    again_of = np.where(attempt > 0, np.arange(n) - 1, -1)
    order, place = _interleave(session, request, attempt, rng)

    turn = {k: v[order] for k, v in turn.items()}
    session, goal, attempt, again_of = session[order], goal[order], attempt[order], again_of[order]
    again_of = np.where(again_of >= 0, place[again_of], -1)
    user = owner[session]
    time = midnight + _times(user, session, attempt, turn["success"], rng)

    spoken = who.spoken[user]
    draw = rng.integers(0, 4096, n)
    asr = np.where(spoken, np.where(turn["misheard"], ASR_WRONG[draw], ASR_RIGHT[draw]), np.nan)
    u = rng.random((3, n), dtype=np.float32)
    barge_in = spoken & (u[0] < np.where(turn["success"], 0.05, np.where(turn["status"] == COMPLETED, 0.6, 0.35)))
    feedback = np.where(turn["success"], u[1] < 0.01, -(u[1] < 0.05).astype(np.int8)).astype(np.int8)
    has_session = rng.random(owner.size)[session] >= NO_SESSION
    return Turns(
        user, session, has_session, time, goal, turn["said"], turn["served"], turn["meaning"], turn["status"],
        serving.confidence[turn["served"]], asr, barge_in, feedback, turn["success"], turn["misheard"], attempt, again_of,
        (again_of >= 0) & (turn["said"] != turn["said"][again_of]),
    )  # fmt: skip


def _requests(language: Language, who: Users, owner: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each session is about: goals and first wordings, int (sessions, REQUESTS), and how many of them there are."""
    n = np.minimum(rng.geometric(ONE_MORE, owner.size), REQUESTS)
    goal = np.zeros((owner.size, REQUESTS), np.int64)
    wording = np.zeros_like(goal)
    for r in range(REQUESTS):
        at = np.flatnonzero(n > r)
        u = rng.random((6, at.size), dtype=np.float32)
        g = np.minimum(np.searchsorted(language.goal_cdf, u[0]), len(language.goals) - 1)
        if r:
            before = goal[at, r - 1]
            similar, routine = u[1] < SIMILAR, (u[1] >= SIMILAR) & (u[1] < SIMILAR + ROUTINE)
            sibling = language.siblings[before, (u[0] > 0.5).astype(int) + (u[0] > 0.8)]
            g = np.where(similar, sibling, np.where(routine, language.routine[before, (u[0] > 0.7).astype(int)], g))
        intent = language.goal_intent[g]
        taste = (who.taste[owner[at]] * 997.0 * (intent + 1)) % 1.0
        w = _pick(language.wording_cdf, intent, np.where(u[2] < TASTE, taste, u[3]))
        if r:
            w = np.where(similar & (u[4] < SAME_WORDING) & (intent == language.goal_intent[before]), wording[at, r - 1], w)
        goal[at, r], wording[at, r] = g, w
    return goal, wording, n


def _attempts(
    language: Language, serving: Serving, heard: np.ndarray, who: Users, user: np.ndarray, goal: np.ndarray, wording: np.ndarray,
    mishear: float, rng: np.random.Generator,
) -> dict[str, np.ndarray]:  # fmt: skip
    """What is said for each request until it is served or given up: arrays (requests, ATTEMPTS); `attempts`, `left` (requests,)."""
    shape = (goal.size, ATTEMPTS)
    out = {k: np.zeros(shape, np.int32) for k in ("said", "served", "meaning")}
    out |= {"status": np.zeros(shape, np.int8), "misheard": np.zeros(shape, bool), "success": np.zeros(shape, bool)}
    attempts, left = np.zeros(goal.size, np.int64), np.zeros(goal.size, bool)
    forms = np.cumsum((1.0 + np.arange(heard.shape[2])) ** -ZIPF_FORMS)
    forms /= forms[-1]
    at, w, usual = np.arange(goal.size), wording, language.wording_cdf.shape[1]
    for a in range(ATTEMPTS):
        u = rng.random((6, at.size), dtype=np.float32)
        g, who_at = goal[at], user[at]
        misheard = u[0] < np.where(who.spoken[who_at], mishear, mishear * TYPED_SLIP)
        said = np.where(misheard, heard[g, w, np.searchsorted(forms, u[1])], language.said[g, w])
        served = np.where(who.holdout[who_at], said, serving.served[said])
        meaning, works = serving.meaning[served], serving.works[served] & (u[2] >= PASSING_ERROR)
        success = works & (meaning == g)
        out["said"][at, a], out["served"][at, a], out["meaning"][at, a] = said, served, meaning
        out["status"][at, a] = np.where(meaning == NO_MATCH, NO_MATCH_STATUS, np.where(works, COMPLETED, ERROR))
        out["misheard"][at, a], out["success"][at, a] = misheard, success
        attempts[at] += 1
        again = u[3] < np.where(success, CHANGED_MIND, who.patience[who_at] * ASKS_AGAIN[min(a, 2)])
        if a == ATTEMPTS - 1:
            again[:] = False
        left[at] = ~again & ~success
        intent = language.goal_intent[g]
        other = _pick(language.wording_cdf, intent, u[4])
        count = (np.diff(language.wording_cdf, axis=1, prepend=0.0) > 0).sum(1)[intent]
        plain, stressed = w % usual, w >= usual
        other = np.where(other == plain, (other + 1) % count, other)
        w = np.where(u[5] < REPEAT, w, np.where((u[5] < REPEAT + STRESS) & ~stressed, plain + usual, other))[again]
        at = at[again]
    return out | {"attempts": attempts, "left": left}


def _pick(cdf: np.ndarray, row: np.ndarray, u: np.ndarray) -> np.ndarray:
    """A draw from the row-th distribution, for each u in 0..1."""
    return np.minimum((u[:, None] > cdf[row]).sum(1), cdf.shape[1] - 1)


def _none_before(flag: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Whether no earlier member of the same (contiguous) group has the flag."""
    before = np.cumsum(flag) - flag
    return before == before[np.searchsorted(group, group)]


def _interleave(session: np.ndarray, request: np.ndarray, attempt: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Some last attempts change places with the request after them: the order of turns, and the place of each."""
    n = session.size
    order = np.arange(n)
    if n > 1:
        last = (attempt[:-1] > 0) & (request[1:] != request[:-1]) & (session[1:] == session[:-1])
        i = np.flatnonzero(last & (rng.random(n - 1) < INTERLEAVED))
        order[i], order[i + 1] = i + 1, i
    place = np.empty(n, np.int64)
    place[order] = np.arange(n)
    return order, place


def _times(user: np.ndarray, session: np.ndarray, attempt: np.ndarray, success: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Microseconds since midnight. Pauses by what happened before; sessions of a user never overlap."""
    n = session.size
    if not n:
        return np.zeros(0, np.int64)
    first = np.append(True, session[1:] != session[:-1])
    failed_before = np.append(False, ~success[:-1])
    z, u = rng.standard_normal(n, dtype=np.float32), rng.random(n, dtype=np.float32)
    median = np.where(attempt > 0, 8.0, np.where(failed_before, 27.0, 47.0))
    spread = np.where(attempt > 0, 0.75, np.where(failed_before, 1.3, 1.2))
    pause = np.where(first, 0, np.minimum(1.0 + median * np.exp(spread * z) + u, LATEST) * SECOND).astype(np.int64)
    since = np.cumsum(pause)
    start_at = np.flatnonzero(first)
    since -= np.repeat(since[start_at], np.diff(np.append(start_at, n)))
    lasts = since[np.append(start_at[1:] - 1, n - 1)]
    # starts: mornings and evenings, in order within a user, each after the end of the session before
    owner = user[start_at]
    m = owner.size
    evening = rng.random(m) < 0.55
    start = ((np.where(evening, 19.0, 8.5) + np.where(evening, 2.5, 2.0) * rng.standard_normal(m)) % 24.0 * 3600 * SECOND).astype(np.int64)
    start = start[np.lexsort((start, owner))]
    busy = np.cumsum(lasts + APART) - (lasts + APART)
    busy -= busy[np.searchsorted(owner, owner)]
    far = owner.astype(np.int64) * (1 << 43)  # keeps users apart in the running maximum; 2**43 us is over three months
    start = np.maximum.accumulate(start - busy + far) - far + busy
    return np.repeat(start, np.diff(np.append(start_at, n))) + since
