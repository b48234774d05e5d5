"""The command line. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import sys
import textwrap
from typing import Any

from pipelines import admin_options as a
from pipelines import flags
from pipelines import options as o
from pipelines import worth_options as w
from pipelines.errors import SayagainError

# command -> (module with main(options), options dataclass or where it is, positional fields)
COMMANDS: dict[str, tuple[str, Any, tuple[str, ...]]] = {
    "mine": ("pipelines.mine", o.MineOptions, ()),
    **{name: ("pipelines.jobs", options, ()) for name, options in o.JOBS.items()},
    "gate": ("pipelines.gate", o.GateOptions, ()),
    "veto": ("pipelines.veto", o.VetoOptions, ("what",)),
    "explain": ("pipelines.explain", o.ExplainOptions, ("text",)),
    "verify": ("pipelines.verify", o.VerifyOptions, ()),
    "simulate": ("pipelines.simulate.job", "pipelines.simulate.options:SimulateOptions", ()),
    "siege": ("pipelines.simulate.siege", "pipelines.simulate.options:SiegeOptions", ()),
    "demo": ("pipelines.demo", o.DemoOptions, ()),
    "evaluate": ("pipelines.evaluate", w.EvaluateOptions, ()),
    "adapt": ("pipelines.adapt", w.AdaptOptions, ()),
    "releases list": ("pipelines.releases", a.ReleasesListOptions, ()),
    "releases show": ("pipelines.releases", a.ReleasesShowOptions, ("release",)),
    "releases diff": ("pipelines.releases", a.ReleasesDiffOptions, ("old", "new")),
    "releases rollback": ("pipelines.releases", a.ReleasesRollbackOptions, ()),
    "releases retract": ("pipelines.releases", a.ReleasesRetractOptions, ("release",)),
    "queue list": ("pipelines.queue", a.QueueListOptions, ()),
    "queue claim": ("pipelines.queue", a.QueueClaimOptions, ()),
    "queue renew": ("pipelines.queue", a.QueueRenewOptions, ("receipt",)),
    "queue ack": ("pipelines.queue", a.QueueAckOptions, ("receipt",)),
    "queue nack": ("pipelines.queue", a.QueueNackOptions, ("receipt",)),
    "queue retry": ("pipelines.queue", a.QueueRetryOptions, ("release",)),
    "queue retract": ("pipelines.queue", a.QueueRetractOptions, ("release",)),
    "forget": ("pipelines.forget", a.ForgetOptions, ()),
    "gc": ("pipelines.gc", a.GcOptions, ()),
    "doctor": ("pipelines.doctor", a.DoctorOptions, ()),
    "traces": ("pipelines.traces", a.TracesOptions, ()),
    "open": ("pipelines.openlake", a.OpenOptions, ()),
    "registry rebuild": ("pipelines.queue", a.RegistryRebuildOptions, ()),
}
GROUPS = {
    "releases": "What was released, what changed, and the way back.",
    "queue": "The retraining queue: releases for trainers, at least once, one consumer at a time.",
    "registry": "The database behind the queue: a projection of the lake.",
}
"""Commands of two words, by their first."""

LAZY = {
    "simulate": "Makes a log of a simulated assistant, to try your settings on.",
    "siege": "Attacks a log with rings of fake accounts, and shows how many of their rewrites would be released.",
}
"""First lines of commands whose options are not imported for the list of commands."""

ABOUT = """\
sayagain reads an assistant's interaction logs and, with no human annotation, turns what users did next into a
gated release of query rewrites, utterance labels, goals and training pairs, in any language.

  sayagain demo                                     make a log, mine it, open the report
  sayagain mine --logs log.parquet --lake ./lake    the main job: everything below, in order
  sayagain explain "TEXT" --lake ./lake             the evidence for or against anything"""


def _options(entry: Any) -> type:
    if isinstance(entry, str):
        module, _, name = entry.partition(":")
        return getattr(importlib.import_module(module), name)
    return entry


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser; only the options of `command` are built, so that the rest need not be imported."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="sayagain", description=ABOUT, formatter_class=formatter)
    parser.add_argument("--version", action="store_true", help="print the version")
    sub = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands (COMMAND --help teaches each)")
    groups = {}
    for group, about in GROUPS.items():
        leaves = sub.add_parser(group, help=about, description=about)
        groups[group] = leaves.add_subparsers(metavar="COMMAND", title="commands (COMMAND --help teaches each)", required=True)
    for name, (_, entry, positional) in COMMANDS.items():
        doc = textwrap.dedent("    " + (_options(entry).__doc__ or "")) if not isinstance(entry, str) or name == command else ""
        first = doc.strip().split("\n")[0] if doc else LAZY.get(name, "")
        group, _, leaf = name.rpartition(" ")
        within = groups[group] if group else sub
        one = within.add_parser(leaf, help=first.replace("%", "%%"), description=doc.strip() or first, formatter_class=formatter)
        one.set_defaults(command=name)
        if name == command:
            flags.add_arguments(one, _options(entry), positional)
    config = sub.add_parser("config", help="Prints the configuration, every key with its default, unit, range and meaning.")
    config.add_argument("--file", help="check this file and print what it sets", metavar="FILE")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command. 0: done, or nothing new; 1: error; 2: wrong usage; 3: a gate refused the release."""
    argv = sys.argv[1:] if argv is None else argv
    words = [word for word in argv if not word.startswith("-")]
    command = next((name for name in (" ".join(words[:2]), *words[:1]) if name in COMMANDS), None)
    parser = build_parser(command)
    namespace = parser.parse_args(argv)
    try:
        if namespace.version:
            from importlib.metadata import version

            print(f"sayagain {version('sayagain')}")
            return 0
        if namespace.command is None:
            parser.print_help()
            return 0
        if namespace.command == "config":
            return _config(namespace.file)
        module, entry, _ = COMMANDS[namespace.command]
        options = flags.from_namespace(_options(entry), namespace)
        _calm()
        if getattr(options, "explain", None) is not None:
            module = "pipelines.explain_turn"
        elif namespace.command in o.JOBS:
            from pipelines.jobs import run_one

            return run_one(namespace.command, options)
        return int(importlib.import_module(module).main(options) or 0)
    except SayagainError as error:
        print(f"sayagain: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("sayagain: stopped; the same command goes on from the last finished table", file=sys.stderr)
        return 130


def _config(path: str | None) -> int:
    from pipelines import config

    if path:
        print(json.dumps(config.load(path).as_dict(), indent=1))
    else:
        print(config.describe())
    return 0


def _calm() -> None:
    """Libraries that talk to a hub or to their makers do not, unless the user says so."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)  # not under that: each model with a prompt is a warning
    # Beam warns at import about Google clients that only Dataflow needs, and says there itself what is missing
    logging.getLogger().addFilter(lambda record: not record.getMessage().startswith("apitools not found"))
