"""The released tables in words and in standard forms: a dictionary of columns, JSON Schema, Croissant, a dataset card's header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa

from rewrite.contracts import CAUSES, LABEL_ORIGINS, RELEASED, REWRITE_STATUSES, SPLITS, UNIQUE_KEYS

TABLES: Final = {
    "rewrites": "serve `target` to someone who says `source`",
    "labels": "utterances with the intent that users confirmed, for supervised training (`sample_weight`)",
    "goals": "which texts ask for the same thing",
    "pairs": "anchor, positive and negative texts for contrastive training",
    "retired": "rewrites of the parent that must no longer be served",
    "goal_changes": "what became of the parent's goals",
}
"""Table -> what it is for."""

COLUMNS: Final = {
    "anchor": "key of a text",
    "assistant_version": "build of the assistant whose answers the label rests on; null when several or unknown",
    "cause": "why the source fails, most likely",
    "change": "kept, merged, split, appeared or vanished",
    "confidence": "probability that the label is right, calibrated on users' behaviour",
    "expires": "stop serving the rewrite on this day, unless a newer release renews it",
    "first_seen": "week (its Monday) in which the rewrite was first supported",
    "goal_id": "the goal that the row belongs to; stable across releases",
    "intent": "what the assistant should understand, or the tool it should call",
    "is_exemplar": "the text that names its goal best",
    "last_seen": "week (its Monday) in which the rewrite was last supported",
    "lift": "probability of success with the rewrite less that of leaving the source alone",
    "lift_lower": "lower bound of the lift",
    "locale": "BCP 47 tag",
    "locale_anchor": "locale of the anchor, and of the negative",
    "locale_positive": "locale of the positive",
    "membership": "how surely the text belongs to its goal, 0 to 1",
    "negative": "key of a text of another goal, near the anchor; null: none was found",
    "negative_origin": "where the negative comes from; null without one",
    "new_goal_id": "goal of this release; null: the old one vanished",
    "old_goal_id": "goal of the parent; null: the new one appeared",
    "origin": "own: its own turns; projected: what its users reached in the end; goal: its goal's",
    "positive": "key of a text of the anchor's goal",
    "probability": "that the target succeeds when it is served to someone who said the source",
    "reason": "why it is gone",
    "rewrite_id": "first 16 hex digits of sha256(locale|source|target)",
    "sample_weight": "weight of the row in training, 0 to 1",
    "score": "share of the source's users who reach the target in the end",
    "slots": "arguments of the intent, a JSON object; null: unknown, or not cleared by k users",
    "source": "key of what is said",
    "source_text": "most common surface form of the source; null when k users share none",
    "source_users": "users who said the source, floored",
    "split": "train, dev, test, or none; a goal is in one split for ever",
    "status": "against the parent: new, kept or changed",
    "target": "key of what should be served instead",
    "target_text": "most common surface form of the target; null when k users share none",
    "texts": "texts that moved, floored",
    "users": "users behind the row, floored to 3, 5, 10, 20, 50, 100 ...",
    "utterance": "key of the text",
    "utterance_text": "most common surface form; null when k users share none",
    "votes": "votes behind the row, floored",
    "weight": "weight of the pair in training, 0 to 1",
}
"""Column -> what it means. A key is the text in Unicode NFKC, lower case, with single spaces."""

CHOICES: Final = {"cause": CAUSES, "origin": LABEL_ORIGINS, "status": REWRITE_STATUSES, "split": SPLITS}
CROISSANT: Final = "http://mlcommons.org/croissant/1.0"
_CR: Final = (
    "citeAs column extract field fileProperty fileObject fileSet format includes isLiveDataset jsonPath key md5 parentField path "
    "recordSet references regex repeated replace samplingRate separator source subField transform equivalentProperty"
)
CONTEXT: Final = {
    **{"@language": "en", "@vocab": "https://schema.org/", "sc": "https://schema.org/", "cr": "http://mlcommons.org/croissant/"},
    **{"rai": "http://mlcommons.org/croissant/RAI/", "dct": "http://purl.org/dc/terms/", "conformsTo": "dct:conformsTo"},
    **{name: {"@id": f"cr:{name}", "@type": "@json"} for name in ("data", "examples")},
    **{"dataType": {"@id": "cr:dataType", "@type": "@vocab"}},
    **{name: f"cr:{name}" for name in _CR.split()},
}
"""The standard context of Croissant 1.0 (docs.mlcommons.org/croissant/docs/croissant-spec-1.0.html, appendix 1)."""


def _json_type(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_date(kind):
        return {"type": "string", "format": "date"}
    if pa.types.is_boolean(kind):
        return {"type": "boolean"}
    return {"type": "integer" if pa.types.is_integer(kind) else "number" if pa.types.is_floating(kind) else "string"}


def json_schema(name: str) -> dict[str, Any]:
    """JSON Schema (2020-12) of one row of a released table; every column is there, null where it is unknown."""
    properties: dict[str, Any] = {}
    for field in RELEASED[name]:
        about = {**_json_type(field.type), "description": COLUMNS[field.name]}
        if field.name not in UNIQUE_KEYS.get(name, ()) or field.name == "negative":
            about["type"] = [about["type"], "null"]
        if field.name in CHOICES:
            about["enum"] = [*CHOICES[field.name], None]
        properties[field.name] = about
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": name,
        "description": TABLES[name],
        "type": "object",
        "properties": properties,
        "required": [f.name for f in RELEASED[name]],
        "additionalProperties": False,
        "x-unique-key": [*UNIQUE_KEYS.get(name, ())],
    }


def croissant(release_id: str, as_of: str, files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The data card in the Croissant 1.0 form; `files`: table -> entry of the manifest (path, bytes, sha256)."""
    kinds = {"integer": "sc:Integer", "number": "sc:Float", "string": "sc:Text", "boolean": "sc:Boolean"}
    records = []
    for name, schema in RELEASED.items():
        fields = []
        for f in schema:
            kind = "sc:Date" if pa.types.is_date(f.type) else kinds[_json_type(f.type)["type"]]
            source = {"fileObject": {"@id": f"{name}.parquet"}, "extract": {"column": f.name}}
            about = {"name": f.name, "description": COLUMNS[f.name], "dataType": kind, "source": source}
            fields.append({"@type": "cr:Field", "@id": f"{name}/{f.name}", **about})
        key = [{"@id": f"{name}/{c}"} for c in UNIQUE_KEYS.get(name, ()) if c != "negative"]
        record: dict[str, Any] = {"@type": "cr:RecordSet", "@id": name, "name": name, "description": TABLES[name], "field": fields}
        records.append(record | ({"key": key} if key and name != "pairs" else {}))
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CROISSANT,
        "name": release_id,
        "version": "{}.{}.{}".format(*map(int, as_of.split("-"))),
        "datePublished": as_of,
        "description": f"Weakly labelled training data for a conversational assistant, mined by sayagain as of {as_of}.",
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": entry["path"],
                "name": entry["path"],
                "contentUrl": entry["path"],
                "contentSize": f"{entry['bytes']} B",
                "encodingFormat": "application/x-parquet",
                "sha256": entry["sha256"],
            }
            for entry in files.values()
        ],
        "recordSet": records,
    }


def dataset_card_header(release_id: str, locales: list[str]) -> str:
    """The YAML header that makes `README.md` a Hugging Face dataset card: one configuration a table."""
    languages = sorted({loc.split("-")[0] for loc in locales})
    lines = ["---", f"pretty_name: {release_id}", "tags: [sayagain, weak-supervision, query-rewriting]"]
    if languages:
        lines += ["language:", *(f"- {json.dumps(n)}" for n in languages)]
    lines.append("configs:")
    for name in RELEASED:
        lines += [f"- config_name: {name}", "  data_files:", "  - split: train", f"    path: {name}.parquet"]
        if name == "labels":
            lines.append("  default: true")
    return "\n".join([*lines, "---", ""])


def json_bytes(value: Any) -> bytes:
    """Canonical: the same value gives the same bytes, in ASCII."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode()
