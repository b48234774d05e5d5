"""Command-line flags as fields of an options dataclass. Imports nothing heavy, so that `--help` stays instant."""

from __future__ import annotations

import argparse
from dataclasses import field, fields
from typing import Any


def opt(
    default: Any,
    help: str,
    *,
    name: str = "",
    metavar: str = "",
    choices: tuple[str, ...] = (),
    kind: Any = None,
    many: bool = False,
    group: str = "",
) -> Any:
    """A command-line option: its default, what it does, and the heading it stands under in --help."""
    found = {"help": help, "name": name, "metavar": metavar, "choices": choices, "kind": kind, "many": many, "group": group}
    return field(default=default, metadata=found)


def flag(f: Any) -> str:
    """`--like-this`, of a field."""
    return "--" + (f.metadata["name"] or f.name).replace("_", "-")


def add_arguments(parser: argparse.ArgumentParser, options: type, positional: tuple[str, ...] = ()) -> None:
    """One flag per field of an options dataclass; those with a group stand last, under its heading."""
    groups: dict[str, Any] = {}
    for f in fields(options):
        m = f.metadata
        if not m or (m["group"] and not getattr(options, "RUNS_BEAM", True)):
            continue
        kw: dict[str, Any] = {"help": m["help"].replace("%", "%%")}
        if f.name not in positional:
            kw["dest"] = f.name
        if isinstance(f.default, bool):
            kw |= {"action": "store_true"}
        else:
            kw |= {"default": f.default}
            if m["choices"]:
                kw["choices"] = m["choices"]
            if m["kind"]:
                kw["type"] = m["kind"]
            if m["metavar"]:
                kw["metavar"] = m["metavar"]
            if m["many"]:
                kw["default"] = []
                kw["nargs" if f.name == "logs" else "action"] = "+" if f.name == "logs" else "append"
            elif f.default not in (None, "", ()):
                kw["help"] += f" (default: {f.default})"
        if f.name in positional and f.default not in ("", ()):
            kw["nargs"] = "?"
        where: Any = parser
        if m["group"]:
            where = groups[m["group"]] = groups.get(m["group"]) or parser.add_argument_group(m["group"])
        where.add_argument(f.name if f.name in positional else flag(f), **kw)


def from_namespace(options: type, namespace: argparse.Namespace) -> Any:
    """The options dataclass, filled and validated."""
    values = {f.name: getattr(namespace, f.name) for f in fields(options) if hasattr(namespace, f.name)}
    made = options(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    made.validate()
    return made
