"""`sayagain releases`: what is listed, shown and compared, that nothing tampered with is read, and the way back."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import polars as pl
import pytest
from release_lake import fixtures, make
from release_world import build, world

from pipelines import registry
from pipelines.cli import main
from pipelines.errors import LakeError
from pipelines.store import Store
from quality.delta import changes, delta
from quality.describe import COLUMNS, json_schema
from rewrite.contracts import RELEASED, UNIQUE_KEYS

made, lake = fixtures(3)


def say(capsys, *words, code=0):
    assert main([*words]) == code
    out = capsys.readouterr()
    return out.out + out.err


def test_list_and_show(made, capsys):
    store, ids = made
    listed = say(capsys, "releases", "list", "--lake", store.root)
    assert [line.split()[0] for line in listed.splitlines()[1:]] == ids and listed.splitlines()[-1].endswith("LATEST")
    shown = say(capsys, "releases", "show", "--lake", store.root)
    assert ids[-1] in shown and ids[-2] in shown and "en-US" in shown
    found = json.loads(say(capsys, "releases", "show", ids[0], "--lake", store.root, "--json"))
    assert found["manifest"]["delta"]["rewrites"] == {"added": 2, "kept": 0, "changed": 0, "retired": 0}
    assert found["manifest"]["locales"]["en-US"]["rewrites"] == 2


def test_an_id_may_be_its_beginning(made):
    store, ids = made
    assert registry.resolve(store, ids[1][:11]) == ids[1]
    assert registry.resolve(store, "LATEST") == ids[2]
    with pytest.raises(LakeError, match="is the beginning of"):
        registry.resolve(store, "r2026")
    with pytest.raises(LakeError, match="no such release"):
        registry.resolve(store, "x")


def test_diff(made, capsys):
    store, ids = made
    out = say(capsys, "releases", "diff", ids[0], ids[2], "--lake", store.root, "--table", "rewrites")
    assert "rewrites: 2 added, 2 kept, 0 changed, 0 retired" in out and "+ en-US | light on" in out
    assert "rewrites: 0 added, 2 kept, 0 changed, 2 retired" in say(capsys, "releases", "diff", ids[2], ids[0], "--lake", store.root)


def test_changes_are_what_a_row_says_not_its_counts():
    old = build().tables
    rows = world()
    rows["rewrites"][0] |= {"target": "light on", "users": 50}
    rows["rewrites"][1] |= {"users": 50, "probability": 0.9}
    found = changes("rewrites", old, build(rows).tables)
    assert found["changed"].select("source", "target", "was_target").rows() == [("turn on the lite", "light on", "turn on the light")]
    assert delta(old, old)["pairs"] == {"added": 0, "kept": old["pairs"].height, "changed": 0, "retired": 0}
    for name in UNIQUE_KEYS:  # every row is counted once
        n = delta(old, build(rows).tables)[name]
        assert n["added"] + n["kept"] + n["changed"] == build(rows).tables[name].height


def test_control_characters_never_reach_the_terminal(tmp_path, capsys):
    store, ids = make(tmp_path / "lake", 1)
    registry.retract(store, ids[0], "\x1b[2Jgone\n")
    assert "\x1b" not in say(capsys, "releases", "list", "--lake", store.root)


@pytest.mark.parametrize("file", ["labels.parquet", "gates.json", "manifest.json"])
def test_a_changed_release_is_refused_by_name(lake, made, capsys, file):
    store, ids = lake, made[1]
    path = Path(store.root, "releases", ids[-1], file)
    path.write_bytes(path.read_bytes().replace(b"g1", b"g2", 1) + (b" " if file != "labels.parquet" else b""))
    assert file in say(capsys, "verify", "--lake", store.root, code=1)
    if file != "gates.json":
        assert file in say(capsys, "releases", "diff", ids[0], ids[-1], "--lake", store.root, code=1)


def test_a_manifest_rewritten_to_fit_is_still_refused(lake, made):
    """Whoever changes a table and the manifest's hash of it is caught by the hash of the rows, or by the queue's of the manifest."""
    store, ids = lake, made[1]
    from quality.manifest import parquet_bytes

    opened = registry.Opened(store, ids[-1])
    labels = opened.tables("labels")["labels"].with_columns(intent=pl.lit("poisoned"))
    data = parquet_bytes(labels, RELEASED["labels"])
    manifest = opened.manifest
    import hashlib

    manifest["tables"]["labels"]["files"][0] |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    store.put(f"releases/{ids[-1]}/labels.parquet", data)
    store.put(f"releases/{ids[-1]}/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(LakeError, match=r"manifest\.json.*queue announced"):
        registry.Opened(store, ids[-1])
    store.delete([f"queue/{ids[-1]}.json"])
    with pytest.raises(LakeError, match="rows of labels"):
        registry.Opened(store, ids[-1]).verify()


def test_a_file_that_is_gone_and_a_half_written_release(lake, made):
    store, ids = lake, made[1]
    store.delete([f"releases/{ids[-1]}/pairs.parquet"])
    with pytest.raises(LakeError, match=r"pairs\.parquet"):
        registry.Opened(store, ids[-1]).tables()
    store.delete([f"releases/{ids[0]}/manifest.json"])
    assert [p.release_id for p in registry.releases(store)] == ids[1:]


def test_rollback_moves_latest_and_the_next_parent(lake, made, capsys):
    store, ids = lake, made[1]
    assert ids[1] in say(capsys, "releases", "rollback", "--lake", store.root, "--reason", "bad")
    assert store.get(registry.LATEST).decode().strip() == ids[1] == registry.resolve(store, "LATEST")
    parent = registry.parent_of(store, date(2027, 1, 1))
    assert parent and parent.release_id == ids[1]
    assert registry.rollback(store, ids[0], "worse") == [ids[1]]
    assert [bool(p.retracted) for p in registry.releases(store, retracted=True)] == [False, True, True]
    with pytest.raises(LakeError, match="was retracted"):
        registry.rollback(store, ids[2], "no way forward")
    assert registry.rollback(store, ids[0], "twice is once") == []


def test_retracting_all_leaves_no_latest(lake, made, capsys):
    store, ids = lake, made[1]
    before = {p: store.get(p) for p in store.list("releases") if not p.endswith("LATEST")}
    for release_id in ids:
        registry.retract(store, release_id, "gone")
    assert not store.exists(registry.LATEST)
    with pytest.raises(LakeError, match="all were retracted"):
        registry.resolve(store, "LATEST")
    assert {p: store.get(p) for p in store.list("releases")} == before  # a retraction is an event: no release byte changes
    assert "--reason is missing" in say(capsys, "releases", "retract", ids[0], "--lake", store.root, code=2)


def test_latest_that_a_dead_retraction_left_behind_is_not_followed(lake, made):
    store, ids = lake, made[1]
    registry.record(store, ids[-1], "retract", reason="died before LATEST moved")
    assert registry.resolve(store, "LATEST") == ids[1]


def test_every_released_column_is_described():
    for name, schema in RELEASED.items():
        described = json_schema(name)
        assert [*described["properties"]] == schema.names
        assert all(COLUMNS[c] for c in schema.names)


def test_rows_are_what_their_json_schema_says(made):
    jsonschema = pytest.importorskip("jsonschema")
    store, ids = made
    for name, table in registry.Opened(store, ids[-1]).tables().items():
        schema = json.loads(store.get(f"releases/{ids[-1]}/schema/{name}.json"))
        validator = jsonschema.Draft202012Validator(schema)
        for row in json.loads(table.with_columns(pl.selectors.date().cast(pl.String)).write_json()):
            validator.validate(row)
        with pytest.raises(jsonschema.ValidationError):
            validator.validate({"users": "three"})


def test_croissant_names_every_file_and_column(made):
    store, ids = made
    manifest = registry.Opened(store, ids[-1]).manifest
    card = json.loads(store.get(f"releases/{ids[-1]}/croissant.json"))
    files = {f["@id"]: f["sha256"] for f in card["distribution"]}
    assert files == {t["files"][0]["path"]: t["files"][0]["sha256"] for t in manifest["tables"].values()}
    assert {r["name"]: [f["name"] for f in r["field"]] for r in card["recordSet"]} == {n: s.names for n, s in RELEASED.items()}


@pytest.mark.slow
def test_croissant_is_what_its_validator_takes(made, caplog):
    """The validator of MLCommons finds no error, nothing odd in the context, and reads the rows by the card."""
    validator = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed (it is in the dev extra)")
    store, ids = made
    dataset = validator.Dataset(jsonld=f"{store.root}/releases/{ids[-1]}/croissant.json")
    assert not dataset.metadata.issues.errors and "context" not in caplog.text
    # only the owner of the log knows the licence and how to cite
    assert all("license" in w or "citeAs" in w for w in dataset.metadata.issues.warnings), dataset.metadata.issues.warnings
    rows = list(dataset.records(record_set="rewrites"))
    assert {r["rewrites/source"].decode() for r in rows} == set(registry.Opened(store, ids[-1]).tables("rewrites")["rewrites"]["source"])


ONE_LINE = {
    "polars": "import polars; print(len(polars.read_parquet({path!r})))",
    "pandas": "import pandas; print(len(pandas.read_parquet({path!r})))",
    "duckdb": "import duckdb; print(duckdb.sql(\"SELECT count(*) FROM '{path}'\").fetchall()[0][0])",
    "datasets": "import datasets; print(len(datasets.load_dataset({folder!r}, 'labels', split='train')))",
}


@pytest.mark.slow
@pytest.mark.parametrize("library", ONE_LINE)
def test_a_release_loads_with_one_line(made, library, tmp_path, monkeypatch):
    pytest.importorskip(library, reason=f"{library} is not installed (it is in the dev extra)")
    store, ids = made
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    folder = f"{store.root}/releases/{ids[-1]}"
    code = ONE_LINE[library].format(path=f"{folder}/labels.parquet", folder=folder)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(registry.Opened(Store(store.root), ids[-1]).manifest["tables"]["labels"]["rows"])


def test_open_sees_finished_tables_only(lake, made, capsys):
    pytest.importorskip("duckdb", reason="DuckDB is not installed (it is in the dev extra)")
    store, ids = lake, made[1]
    Path(store.root, "releases", "half-written").mkdir()
    query = "SELECT count(*) AS n FROM released_rewrites WHERE source = 'play jass'"
    assert json.loads(say(capsys, "open", "--lake", store.root, "--sql", query, "--json")) == [{"n": 1}]
    registry.retract(store, ids[-1], "bad")
    assert json.loads(say(capsys, "open", "--lake", store.root, "--sql", query, "--json")) == [{"n": 0}]
    described = json.loads(say(capsys, "open", "--lake", store.root, "--columns", "--json"))
    assert all(meaning for name in described for _, _, meaning in described[name])
    assert "Parser Error" in say(capsys, "open", "--lake", store.root, "--sql", "SELEKT", code=1)
    assert "--sql is missing" in say(capsys, "open", "--lake", store.root, code=2)
    path = Path(store.root, "releases", ids[1], "labels.parquet")
    path.write_bytes(path.read_bytes() + b" ")
    assert "labels.parquet" in say(capsys, "open", "--lake", store.root, "--sql", query, code=1)
