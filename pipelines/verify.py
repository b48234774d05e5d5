"""`sayagain verify`: does a release hold what its manifest says?"""

from __future__ import annotations

import json

from pipelines import registry
from pipelines.context import Context
from pipelines.options import VerifyOptions


def main(options: VerifyOptions) -> int:
    """Check every hash of the release's manifest and print the rows per table."""
    store = Context(options).store
    release_id = registry.resolve(store, options.release)
    release = registry.Opened(store, release_id)
    release.verify()
    rows = {name: table["rows"] for name, table in release.manifest["tables"].items()}
    if options.json:
        print(json.dumps({"release_id": release_id, "manifest_sha256": release.manifest_sha256, "rows": rows}))
    else:
        print(f"{release_id}: every file is what its manifest (sha256 {release.manifest_sha256[:12]}) says")
        for name, n in rows.items():
            print(f"  {name:<14}{n:>9,} rows")
    return 0
