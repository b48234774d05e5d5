"""`sayagain verify`: does a release hold what its manifest says?"""

from __future__ import annotations

import hashlib
import json

from pipelines import registry
from pipelines.context import Context
from pipelines.errors import LakeError
from pipelines.options import VerifyOptions


def main(options: VerifyOptions) -> int:
    """Check every hash of the release's manifest and print the rows per table."""
    from quality import manifest as m

    store = Context(options).store
    release_id = registry.resolve(store, options.release)
    read = lambda path: store.get(f"releases/{release_id}/{path}")  # noqa: E731
    data = read("manifest.json")
    try:
        manifest = m.read_manifest(data)
        m.verify(manifest, read)
    except (m.TamperedRelease, m.NewerFormat) as error:
        raise LakeError(str(error)) from None
    rows = {name: table["rows"] for name, table in manifest["tables"].items()}
    digest = hashlib.sha256(data).hexdigest()
    if options.json:
        print(json.dumps({"release_id": release_id, "manifest_sha256": digest, "rows": rows}))
    else:
        print(f"{release_id}: every file is what its manifest (sha256 {digest[:12]}) says")
        for name, n in rows.items():
            print(f"  {name:<14}{n:>9,} rows")
    return 0
