"""`sayagain veto`: a rewrite or a text that is never released again. Vetoes are immutable events beside the releases."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime

from pipelines.errors import UsageError
from pipelines.options import VetoOptions
from pipelines.store import Store
from quality.holdback import Veto
from rewrite.text import key

VETOES = "events/veto"


def vetoes(store: Store) -> list[Veto]:
    """Every veto of the lake, in a fixed order. Raises ValueError with the file's name for one that cannot be read."""
    found = []
    for path in sorted(store.list(VETOES)):
        try:
            found.append(Veto.from_json(store.get(path)))
        except ValueError as error:
            raise ValueError(f"{store.url(path)}: {error}") from None
    return found


def veto(store: Store, what: str, reason: str) -> tuple[Veto, bool]:
    """Log a veto; False when it was there already. 16 hex digits are a rewrite's id, everything else is a text."""
    one = Veto(reason, rewrite_id=what) if re.fullmatch(r"[0-9a-f]{16}", what) else Veto(reason, text=key(what))
    name = hashlib.sha256(f"{one.rewrite_id or ''}|{one.text or ''}".encode()).hexdigest()[:16]
    new = store.put_new(f"{VETOES}/{name}.json", one.to_json({"at": datetime.now(UTC).isoformat(timespec="seconds")}))
    return one, new


def main(options: VetoOptions) -> int:
    """Log it, and say from when it holds."""
    if not options.what.strip():
        raise UsageError("name a rewrite id (16 hex digits) or a text")
    _, new = veto(Store(options.lake), options.what.strip(), options.reason)
    print("logged: the next release is without it, and retires it" if new else "it was vetoed before")
    return 0
