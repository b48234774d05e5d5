"""For trainers: take a release off the queue, load its tables, say what was trained on it.

from pipelines.client import Client

with Client("./lake") as client:
    with client.claim(lease="2h") as job:       # None would mean: nothing to do
        labels = job.load("labels")             # Polars; held to the manifest's hashes
        version = train(labels)
        job.ack(version)                        # left without an ack, the block gives the release back
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pipelines import registry
from pipelines.admin_options import LakeOptions, seconds
from pipelines.context import Context
from pipelines.errors import LakeError
from pipelines.queue import Queue, open_queue, whoami
from quality.queue import Message

if TYPE_CHECKING:
    import polars as pl


class Job:
    """One claimed release. `kind` is `train`, or `retract`: take `assistant_version` out of service, then `ack`."""

    def __init__(self, queue: Queue, message: Message):
        self._queue, self.message = queue, message
        self.done = False

    @property
    def release_id(self) -> str:
        return self.message.release_id

    @property
    def kind(self) -> str:
        return self.message.kind

    @property
    def assistant_version(self) -> str:
        """What was trained on it before; "" when nothing was."""
        return self.message.assistant_version

    @property
    def where(self) -> str:
        """The release's folder or URL."""
        return self._queue.store.url(f"releases/{self.release_id}")

    def load(self, table: str) -> pl.DataFrame:
        """A table of the release. Raises LakeError naming the file when it is not what the manifest says."""
        return registry.Opened(self._queue.store, self.release_id).tables(table)[table]

    def renew(self, lease: str = "2h") -> str:
        """Hold it longer. Returns "" or why to stop: `superseded` or `retracted`. Raises LakeError when somebody else has it."""
        self.message = self._queue.renew(self.message.receipt, seconds(lease, "lease"))
        return "retracted" if self.message.state == "retracted" else "superseded" if self.message.superseded_by else ""

    def ack(self, assistant_version: str) -> bool:
        """It is trained, as this version (or taken out of service). False when that was said before."""
        new = self._queue.ack(self.message.receipt, assistant_version)
        self.done = True
        return new

    def nack(self) -> None:
        """Give it back for another to try."""
        self._queue.nack(self.message.receipt)
        self.done = True

    def __enter__(self) -> Job:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.done:
            try:
                self.nack()
            except LakeError:
                if error is None:  # else the error that ended the block says more
                    raise


@dataclass(frozen=True)
class _Options(LakeOptions):
    quiet: bool = True


class Client:
    """The queue of a lake. `database`: URL of its database; default: SAYAGAIN_DATABASE, the configuration, or SQLite beside the lake."""

    def __init__(self, lake: str, *, config: str | None = None, database: str = ""):
        options: Any = _Options(lake=lake, config=config)
        options.validate()
        context = Context(options)
        if database:
            self._queue = Queue(context.store, context.lake_id, database=database, tries=context.config.queue.tries)
        else:
            self._queue = open_queue(context)

    def claim(self, lease: str = "2h", consumer: str = "", key: str = "") -> Job | None:
        """The next thing to do, held for `lease` (90s, 30m, 2h, 1d); None when there is none. The same `key` gets the same job."""
        message = self._queue.claim(consumer or whoami(), seconds(lease, "lease"), key)
        return Job(self._queue, message) if message else None

    def close(self) -> None:
        self._queue.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
