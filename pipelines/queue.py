"""`sayagain queue`: releases for trainers, at least once, one consumer at a time.

What counts is written to the lake first, as an event that exists once (`put if absent`); the database (`quality.queue`)
follows. Whoever dies in between loses a lease, never an answer.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
from datetime import UTC, datetime
from typing import Any

from pipelines import admin_options as o
from pipelines import registry
from pipelines.context import Context
from pipelines.errors import LakeError, UsageError
from pipelines.explain import printable
from pipelines.releases import open_lake
from pipelines.store import Store
from quality.queue import LeaseLost, Message, QueueDatabase

DATABASE_ENV = "SAYAGAIN_DATABASE"
"""URL of the registry's database, such as postgresql://user:password@host/name: by environment, as it holds a password."""


class Queue:
    """The retraining queue of one lake."""

    def __init__(self, store: Store, lake_id: str, *, database: str = "", tries: int = 3, clock: Any = None):
        self.store = store
        self.url = database or os.environ.get(DATABASE_ENV) or _beside(store)
        try:
            self.database = QueueDatabase(self.url, lake_id, tries, clock)
        except Exception as error:
            # no password in a message: SQLAlchemy's and the driver's own name the host and what is wrong
            raise LakeError(f"the registry's database ({DATABASE_ENV}) cannot be opened: {type(error).__name__}: {error}") from None

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def sync(self) -> None:
        """Bring the database up to the lake; dead letters of messages whose tries are used up are written."""
        self._project()
        for m in self.database.messages():
            if m.state == "exhausted":
                name = self._numbered(m, "dead")
                registry.record(self.store, m.release_id, name, tries=m.tries, last_consumer=m.consumer)
                self._project()

    def _project(self) -> None:
        releases, events = self.database.known()
        have = {p.split("/")[1] for p in self.store.list("releases") if p.endswith("/manifest.json") and p.count("/") == 2}
        happened = [p for p in self.store.list("events") if p.endswith(".json")]
        new = []
        for release_id in sorted(have - releases):
            try:
                found = registry.Opened(self.store, release_id)
            except LakeError:
                if not registry.is_retracted(self.store, release_id):
                    raise
                continue
            m = found.manifest
            new.append({"release_id": release_id, "as_of": m["as_of"], "parent": m["parent"], "manifest_sha256": found.manifest_sha256})
        rows = []
        for path in happened:
            if path not in events:
                body = self.store.get(path).decode()
                rows.append({**json.loads(body), "object": path, "body": body})
        if new or rows or releases - have or events - set(happened):
            self.database.sync(new, rows, releases - have, events - set(happened))

    def _numbered(self, m: Message, name: str) -> str:
        """The next free name of an event that may happen again: dead-1, dead-2."""
        suffix = "" if m.kind == "train" else "-retract"
        n = 1
        while registry.event(self.store, m.release_id, f"{name}{suffix}-{n}"):
            n += 1
        return f"{name}{suffix}-{n}"

    def messages(self) -> list[Message]:
        """Every message, oldest release first."""
        self.sync()
        return self.database.messages()

    def claim(self, consumer: str, lease: float, key: str = "") -> Message | None:
        """Hold the next message for `lease` seconds; None when there is nothing to do. See QueueDatabase.claim."""
        self.sync()
        found = self.database.claim(consumer, lease, key)
        if found and registry.Opened(self.store, found.release_id).manifest_sha256 != found.manifest_sha256:
            raise LakeError(f"{found.release_id}: its manifest is not the one that was released; retract it, do not train on it")
        return found

    def renew(self, receipt: str, lease: float) -> Message:
        """Hold it longer. The answer says when the release was superseded or retracted meanwhile."""
        self.sync()
        return self._own(lambda: self.database.renew(receipt, lease))

    def ack(self, receipt: str, assistant_version: str) -> bool:
        """It is trained (or, of a retraction: taken out of service). False when this receipt said so before.

        Raises LakeError when the lease ran out and another consumer holds the message, or has acknowledged it.
        """
        self.sync()
        m = self._own(lambda: self.database.holder(receipt))
        name = "ack" if m.kind == "train" else "ack-retract"
        body = {"assistant_version": assistant_version, "receipt": receipt, "manifest_sha256": m.manifest_sha256, "consumer": m.consumer}
        new = registry.record(self.store, m.release_id, name, **body)
        if not new:
            before = registry.event(self.store, m.release_id, name) or {}
            if before.get("receipt") != receipt:
                raise LakeError(
                    f"{m.release_id} was acknowledged at {before.get('at')} as {before.get('assistant_version')!r} under {before.get('receipt')}: "
                    f"{assistant_version!r} was trained twice; keep one of the two"
                )
        self.sync()
        self.database.release(receipt)
        return new

    def nack(self, receipt: str) -> Message:
        """Give it back at once; after `tries` claims it is a dead letter."""
        self.sync()
        m = self._own(lambda: self.database.holder(receipt))
        self.database.release(receipt)
        self.sync()
        return self.database.message(m.release_id, m.kind) or m

    def retry(self, release_id: str) -> list[Message]:
        """Dead letters of a release, back to the queue with fresh tries."""
        dead = [m for m in self.messages() if m.release_id == release_id and m.state == "dead"]
        for m in dead:
            registry.record(self.store, release_id, self._numbered(m, "retry"))
        self.sync()
        return dead

    def rebuild(self) -> list[Message]:
        """The database from nothing but the lake; what was acknowledged stays so, leases are gone."""
        self.database.drop()
        return self.messages()

    @staticmethod
    def _own(ask: Any) -> Message:
        try:
            return ask()
        except (LeaseLost, ValueError) as error:
            raise LakeError(str(error)) from None


def _beside(store: Store) -> str:
    if not store.local:
        raise UsageError(
            f"{store.root}: the queue of a lake that is not a local folder needs a database that all consumers reach; set {DATABASE_ENV}, "
            "such as postgresql://user:password@host/name"
        )
    return f"sqlite:///{store.root}.registry.sqlite"


def open_queue(context: Context) -> Queue:
    """The queue of a context's lake, as the configuration has it."""
    return Queue(context.store, context.lake_id, database=context.config.queue.database, tries=context.config.queue.tries)


def whoami() -> str:
    """A consumer's name when it gives none."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


# the command line


def main(options: o.LakeOptions) -> int:
    """Run the subcommand that the options belong to."""
    queue = open_queue(open_lake(options))
    run: Any = {
        o.QueueListOptions: _list,
        o.QueueClaimOptions: _claim,
        o.QueueRenewOptions: _renew,
        o.QueueAckOptions: _ack,
        o.QueueNackOptions: _nack,
        o.QueueRetryOptions: _retry,
        o.QueueRetractOptions: _retract,
        o.RegistryRebuildOptions: _rebuild,
    }[type(options)]
    try:
        found, lines = run(queue, options)
    finally:
        queue.close()
    print(json.dumps(found, default=str) if options.json else "\n".join(lines))
    return 0


def told(queue: Queue, m: Message | None) -> dict[str, Any] | None:
    """A message for a script."""
    if m is None:
        return None
    until = f"{datetime.fromtimestamp(m.lease_until, UTC):%Y-%m-%dT%H:%M:%SZ}" if m.lease_until else None
    return m.as_dict() | {"lease_until": until, "where": queue.store.url(f"releases/{m.release_id}")}


def _list(queue: Queue, options: o.QueueListOptions) -> tuple[Any, list[str]]:
    have = queue.messages()
    lines = [f"{'release':<24} {'message':<8} {'state':<11}{'tries':>6}  "]
    for m in have:
        notes = [f"held by {printable(m.consumer)} until {told(queue, m)['lease_until']}"] if m.state == "claimed" else []  # type: ignore[index]
        notes += [f"trained as {printable(m.assistant_version)}"] if m.assistant_version else []
        notes += [f"superseded by {m.superseded_by}"] if m.superseded_by and m.state in ("superseded", "claimed") else []
        lines.append(f"{m.release_id:<24} {m.kind:<8} {m.state:<11}{m.tries:>6}  {', '.join(notes)}".rstrip())
    return [told(queue, m) for m in have], lines if have else ["the queue is empty: nothing was released yet"]


def _claim(queue: Queue, options: o.QueueClaimOptions) -> tuple[Any, list[str]]:
    m = queue.claim(options.consumer or whoami(), o.seconds(options.lease, "--lease"), options.key)
    if m is None:
        return None, ["nothing to do: every release is trained, held, superseded, retracted or a dead letter (`sayagain queue list`)"]
    found = told(queue, m) or {}
    what = (
        "train on it" if m.kind == "train" else f"RETRACTED: take {printable(m.assistant_version)}, which was trained on it, out of service"
    )
    lines = [
        f"{m.release_id}: {what}",
        f"  where    {found['where']}",
        f"  receipt  {m.receipt}",
        f"  lease    until {found['lease_until']}, try {m.tries} of {queue.database.tries}",
        *([f"  instead of {', '.join(m.supersedes)}, which nobody trained on"] if m.supersedes else []),
        f"then: sayagain queue ack {m.receipt} --assistant-version VERSION --lake {options.lake}",
    ]
    return found, lines


def _warnings(m: Message) -> list[str]:
    out = [f"superseded meanwhile by {m.superseded_by}: you may stop and claim that one"] if m.superseded_by else []
    return [*out, *(["RETRACTED meanwhile: stop, do not use what you trained"] if m.state == "retracted" else [])]


def _renew(queue: Queue, options: o.QueueRenewOptions) -> tuple[Any, list[str]]:
    m = queue.renew(options.receipt, o.seconds(options.lease, "--lease"))
    found = told(queue, m) or {}
    return found, [f"{m.release_id}: held until {found['lease_until']}", *_warnings(m)]


def _ack(queue: Queue, options: o.QueueAckOptions) -> tuple[Any, list[str]]:
    new = queue.ack(options.receipt, options.assistant_version)
    release_id = options.receipt.split(".")[0]
    after = [m for m in queue.messages() if m.release_id == release_id]
    retracted = any(m.kind == "retract" and m.state != "acked" for m in after)
    lines = [f"{release_id}: trained as {printable(options.assistant_version)}" + ("" if new else " (said before)")]
    if retracted:
        lines.append("RETRACTED meanwhile: take it out of service; the queue has a message about it")
    return {"release_id": release_id, "assistant_version": options.assistant_version, "new": new, "retracted": retracted}, lines


def _nack(queue: Queue, options: o.QueueNackOptions) -> tuple[Any, list[str]]:
    m = queue.nack(options.receipt)
    return told(queue, m), [f"{m.release_id}: given back, {m.state}, {m.tries} of {queue.database.tries} tries used", *_warnings(m)]


def _retry(queue: Queue, options: o.QueueRetryOptions) -> tuple[Any, list[str]]:
    release_id = registry.resolve(queue.store, options.release)
    dead = queue.retry(release_id)
    return {"release_id": release_id, "retried": len(dead)}, [f"{release_id}: {len(dead)} dead letter(s) are ready again"]


def _retract(queue: Queue, options: o.QueueRetractOptions) -> tuple[Any, list[str]]:
    release_id = registry.resolve(queue.store, options.release)
    latest = registry.retract(queue.store, release_id, options.reason)
    about = [m for m in queue.messages() if m.release_id == release_id]
    told_ = [
        f"{printable(m.consumer)} holds it and is told at its next renew" for m in about if m.receipt and m.kind == "train" and m.consumer
    ]
    told_ += [f"it was trained as {printable(m.assistant_version)}: the queue has a retract message" for m in about if m.kind == "retract"]
    found = {"retracted": release_id, "latest": latest, "messages": [told(queue, m) for m in about]}
    return found, [f"{release_id} is retracted; LATEST is {latest or 'gone: no release is left'}", *told_]


def _rebuild(queue: Queue, options: o.RegistryRebuildOptions) -> tuple[Any, list[str]]:
    have = queue.rebuild()
    states: dict[str, int] = {}
    for m in have:
        states[m.state] = states.get(m.state, 0) + 1
    return {"messages": len(have), "states": states}, [
        f"{len(have)} messages from the lake: " + ", ".join(f"{n} {s}" for s, n in sorted(states.items()))
    ]
