"""The retraining queue in a SQL database: what may be trained on, and who holds it.

Releases and events (ack, retract, dead letter, retry) are a projection of immutable files: the caller hands them in with
`QueueDatabase.sync`, and losing the database loses nothing but leases and counts of tries. SQLite and PostgreSQL, through
SQLAlchemy. A claim is one conditional UPDATE, so that of two consumers one gets it, whatever the isolation level.

A release is a whole state, not a difference: the newest one supersedes all that nobody has trained on. A retracted
release that somebody did train on comes back as a message of its own kind, `retract`: take that model out of service.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

# The 1 is the layout's version: a projection is never migrated, a new layout gets new names and is filled from the lake.
_META: Final = sa.MetaData()
_TEXT: Final = sa.Text()
RELEASES: Final = sa.Table(
    "sayagain1_releases",
    _META,
    sa.Column("lake_id", _TEXT, primary_key=True),
    sa.Column("release_id", _TEXT, primary_key=True),
    sa.Column("as_of", _TEXT, nullable=False),
    sa.Column("parent", _TEXT),
    sa.Column("manifest_sha256", _TEXT, nullable=False),
)
EVENTS: Final = sa.Table(
    "sayagain1_events",
    _META,
    sa.Column("lake_id", _TEXT, primary_key=True),
    sa.Column("object", _TEXT, primary_key=True),  # its path in the lake
    sa.Column("release_id", _TEXT, nullable=False),
    sa.Column("event", _TEXT, nullable=False),
    sa.Column("at", _TEXT),
    sa.Column("body", _TEXT, nullable=False),  # the file, JSON
)
HOLDS: Final = sa.Table(
    "sayagain1_holds",
    _META,
    sa.Column("lake_id", _TEXT, primary_key=True),
    sa.Column("message_id", _TEXT, primary_key=True),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("receipt", _TEXT),
    sa.Column("consumer", _TEXT),
    sa.Column("claim_key", _TEXT),  # of the claim, chosen by the consumer
    sa.Column("lease_until", sa.Float(53), nullable=False),  # seconds since 1970; 0: nobody holds it
)

KINDS: Final = ("train", "retract")


class LeaseLost(Exception):
    """The receipt is no longer the one that holds the message."""


@dataclass(frozen=True)
class Message:
    """One thing to do about one release, and where it stands.

    `state`: ready, claimed, acked, superseded (by a newer release), retracted, exhausted (tries used up, not yet a dead
    letter) or dead. `superseded_by`, `supersedes`: release ids.
    """

    release_id: str
    kind: str
    state: str
    as_of: str
    manifest_sha256: str
    tries: int = 0
    receipt: str = ""
    consumer: str = ""
    claim_key: str = ""
    lease_until: float = 0.0
    assistant_version: str = ""
    superseded_by: str = ""
    supersedes: tuple[str, ...] = field(default=())

    @property
    def message_id(self) -> str:
        return message_id(self.release_id, self.kind)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def message_id(release_id: str, kind: str) -> str:
    """The idempotent key of a message: one per release and kind, for ever."""
    return f"{release_id}/{kind}"


def read_receipt(receipt: str) -> tuple[str, str]:
    """(release id, kind) of a receipt. Raises ValueError when it is none."""
    parts = receipt.split(".")
    if len(parts) != 4 or parts[1] not in KINDS or not parts[2].isdigit():
        raise ValueError(f"{receipt!r} is not a receipt; `sayagain queue claim` gives one, such as r2026-01-31-0123456789ab.train.1.89ab")
    return parts[0], parts[1]


def project(
    releases: Iterable[Mapping[str, Any]], events: Iterable[Mapping[str, Any]], holds: Iterable[Mapping[str, Any]], now: float, tries: int
) -> list[Message]:
    """Every message and its state, by release; pure. `tries`: claims before a message becomes a dead letter."""
    happened: dict[str, dict[str, Mapping[str, Any]]] = {}
    for e in events:
        happened.setdefault(e["release_id"], {})[e["event"]] = e
    held = {h["message_id"]: h for h in holds}
    ordered = sorted(releases, key=lambda r: (r["as_of"], r["release_id"]))
    alive = [r["release_id"] for r in ordered if "retract" not in happened.get(r["release_id"], {})]
    newest = alive[-1] if alive else ""
    untrained = tuple(r for r in alive[:-1] if "ack" not in happened.get(r, {}))
    out = []
    for r in ordered:
        release_id = r["release_id"]
        seen = happened.get(release_id, {})
        for kind in KINDS:
            if kind == "retract" and not ("retract" in seen and "ack" in seen):
                continue
            suffix = "" if kind == "train" else "-retract"
            h: Mapping[str, Any] = held.get(message_id(release_id, kind), {"tries": 0, "lease_until": 0.0})
            count = {
                name: sum(e.startswith(f"{name}{suffix}-") and e[len(name + suffix) + 1 :].isdigit() for e in seen)
                for name in ("dead", "retry")
            }
            if f"ack{suffix}" in seen:
                state = "acked"
            elif kind == "train" and "retract" in seen:
                state = "retracted"
            elif count["dead"] > count["retry"]:
                state = "dead"
            elif h["lease_until"] > now:
                state = "claimed"
            elif kind == "train" and release_id != newest:
                state = "superseded"
            else:
                state = "exhausted" if h["tries"] >= tries * (1 + count["retry"]) else "ready"
            acked = seen.get("ack", {})
            later = kind == "train" and release_id in alive and release_id != newest
            out.append(
                Message(
                    release_id,
                    kind,
                    state,
                    r["as_of"],
                    r["manifest_sha256"],
                    h["tries"],
                    h.get("receipt") or "",
                    h.get("consumer") or "",
                    h.get("claim_key") or "",
                    h["lease_until"],
                    acked.get("assistant_version", ""),
                    newest if later else "",
                    untrained if kind == "train" and release_id == newest else (),
                )
            )
    return out


class QueueDatabase:
    """The queue of one lake in a database that may hold several.

    `url`: of SQLAlchemy; `tries`: claims before a message becomes a dead letter; `clock`: seconds since 1970, for tests;
    by default the server's clock where there is one, so that consumers' clocks need not agree.
    """

    def __init__(self, url: str, lake_id: str, tries: int, clock: Callable[[], float] | None = None):
        self._lake, self.tries, self._clock = lake_id, tries, clock
        parsed = sa.make_url(url)
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        here = parsed.get_backend_name() == "sqlite"
        self._engine = sa.create_engine(parsed, connect_args={"timeout": 30} if here else {}, pool_pre_ping=not here)
        self._insert: Any = (sqlite if here else postgresql).insert
        with self._engine.begin() as db:
            if not here:  # two that create one table at once: the second waits here
                db.execute(sa.text("SELECT pg_advisory_xact_lock(20261122)"))
            for table in _META.sorted_tables:
                db.execute(sa.schema.CreateTable(table, if_not_exists=True))

    def close(self) -> None:
        self._engine.dispose()

    def _now(self, db: sa.Connection) -> float:
        if self._clock:
            return self._clock()
        if self._engine.dialect.name == "postgresql":
            return float(db.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
        return time.time()

    def _rows(self, db: sa.Connection, table: sa.Table) -> list[dict[str, Any]]:
        return [dict(r) for r in db.execute(sa.select(table).where(table.c.lake_id == self._lake)).mappings()]

    # the projection

    def known(self) -> tuple[set[str], set[str]]:
        """Release ids and event objects that the database has seen."""
        with self._engine.connect() as db:
            found = [
                db.execute(sa.select(t.c[c]).where(t.c.lake_id == self._lake)) for t, c in ((RELEASES, "release_id"), (EVENTS, "object"))
            ]
            return {r[0] for r in found[0]}, {r[0] for r in found[1]}

    def sync(
        self, releases: Iterable[Mapping[str, Any]], events: Iterable[Mapping[str, Any]], gone_releases: set[str], gone_events: set[str]
    ) -> None:
        """Add what the lake has and the database has not, remove what the lake no longer has. Doing it twice is doing it once."""
        with self._engine.begin() as db:
            for table, rows in ((RELEASES, releases), (EVENTS, events)):
                for row in rows:
                    values = {c.name: row.get(c.name) for c in table.c if c.name != "lake_id"}
                    db.execute(self._insert(table).values(lake_id=self._lake, **values).on_conflict_do_nothing())
            for table, column, gone in ((RELEASES, "release_id", gone_releases), (EVENTS, "object", gone_events)):
                if gone:
                    db.execute(table.delete().where(table.c.lake_id == self._lake, table.c[column].in_(sorted(gone))))

    def drop(self) -> None:
        """Forget everything about this lake, leases too; `sync` fills it again."""
        with self._engine.begin() as db:
            for table in _META.sorted_tables:
                db.execute(table.delete().where(table.c.lake_id == self._lake))

    def messages(self) -> list[Message]:
        """Every message, oldest release first."""
        import json

        with self._engine.begin() as db:
            events = [json.loads(e["body"]) | {"event": e["event"]} for e in self._rows(db, EVENTS)]
            return project(self._rows(db, RELEASES), events, self._rows(db, HOLDS), self._now(db), self.tries)

    def message(self, release_id: str, kind: str) -> Message | None:
        return next((m for m in self.messages() if (m.release_id, m.kind) == (release_id, kind)), None)

    # leases

    def claim(self, consumer: str, lease: float, key: str = "") -> Message | None:
        """Hold one ready message for `lease` seconds, retractions first, then the newest release; None: there is none.

        With a `key`, a consumer that asks again under the same key gets the message it holds already, not another.
        """
        while True:
            have = self.messages()
            if key:
                mine = next((m for m in have if m.state == "claimed" and (m.consumer, m.claim_key) == (consumer, key)), None)
                if mine:
                    return mine
            ready = sorted((m for m in have if m.state == "ready"), key=lambda m: m.kind)  # "retract" < "train"
            if not ready:
                return None
            if self._take(ready[0], consumer, lease, key):
                return self.message(ready[0].release_id, ready[0].kind)

    def _take(self, m: Message, consumer: str, lease: float, key: str) -> bool:
        """One conditional UPDATE; False when another consumer was faster."""
        receipt = f"{m.release_id}.{m.kind}.{m.tries + 1}.{secrets.token_hex(4)}"
        with self._engine.begin() as db:
            blank = {"lake_id": self._lake, "message_id": m.message_id, "tries": m.tries, "lease_until": 0.0}
            db.execute(self._insert(HOLDS).values(blank).on_conflict_do_nothing())
            now = self._now(db)
            free = (HOLDS.c.tries == m.tries, HOLDS.c.lease_until <= now)
            change = {"tries": m.tries + 1, "receipt": receipt, "consumer": consumer, "claim_key": key, "lease_until": now + lease}
            return db.execute(HOLDS.update().where(*self._is(m.message_id), *free).values(change)).rowcount == 1

    def _is(self, message: str) -> tuple[Any, Any]:
        return HOLDS.c.lake_id == self._lake, HOLDS.c.message_id == message

    def renew(self, receipt: str, lease: float) -> Message:
        """Hold it `lease` seconds longer from now. Raises LeaseLost, ValueError."""
        release_id, kind = read_receipt(receipt)
        m = self.holder(receipt)
        with self._engine.begin() as db:
            now = self._now(db)
            blank = {"lake_id": self._lake, "message_id": m.message_id, "tries": m.tries, "lease_until": 0.0}
            db.execute(self._insert(HOLDS).values(blank).on_conflict_do_nothing())
            mine = sa.or_(HOLDS.c.receipt == receipt, HOLDS.c.receipt.is_(None))
            change = {"receipt": receipt, "lease_until": now + lease}
            if db.execute(HOLDS.update().where(*self._is(m.message_id), mine).values(change)).rowcount != 1:
                raise LeaseLost(f"{release_id}: another consumer took it meanwhile")
        renewed = self.message(release_id, kind)
        assert renewed is not None
        return renewed

    def holder(self, receipt: str) -> Message:
        """The message of a receipt that holds it, or may: after the database was lost, no receipt is known, and none is wrong.

        A lease that ran out still holds while nobody else has claimed. Raises LeaseLost, ValueError.
        """
        release_id, kind = read_receipt(receipt)
        m = self.message(release_id, kind)
        if m is None:
            raise ValueError(f"{receipt!r}: the lake has no such message")
        if m.receipt and m.receipt != receipt:
            raise LeaseLost(f"{release_id}: the lease of {receipt} ran out, and {m.consumer} claimed it since (try {m.tries})")
        return m

    def release(self, receipt: str) -> None:
        """Give a message back at once: after a nack, or when it is done."""
        release_id, kind = read_receipt(receipt)
        with self._engine.begin() as db:
            change = {"receipt": None, "consumer": None, "claim_key": None, "lease_until": 0.0}
            db.execute(HOLDS.update().where(*self._is(message_id(release_id, kind)), HOLDS.c.receipt == receipt).values(change))
