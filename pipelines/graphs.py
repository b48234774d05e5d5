"""The graph of each job as an engine would get it, built without data, a lake or a cloud: for `--dry-run` and its tests."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from datetime import date
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PortableOptions
from apache_beam.portability import common_urns
from apache_beam.runners.portability.fn_api_runner import translations
from apache_beam.transforms import environments

from pipelines import engine
from pipelines.context import Context
from pipelines.store import Manifest
from rewrite.contracts import BUCKETS

DAY = date(2026, 1, 1)  # any: no stage depends on it


def transforms(context: Context) -> dict[str, beam.PTransform]:
    """Job -> its composite transform, of the configuration and of nothing else; `mine` is all of them, one after another."""
    from pipelines import aggregate, choose, detect, embed, encode, fit, ingest, link, release, window
    from rewrite.turns import Rules

    c, store, p = context.config, context.store, context.config.privacy
    gather = window.GatherEvidence(store, "dry", window.rules(context), [])
    rows = c.run.shard_turns
    job = ingest.Job(store, "dry", Rules(), frozenset(), c.sessions.gap, rows, BUCKETS, key_secret=context.options.user_key_secret)
    partition = "model=dry"
    as_of = Manifest("goals", f"as_of={DAY}", "link", "dry")
    have = embed.Current(c.embedding.model, "", {"*": partition}, {})
    return {
        "ingest": ingest.Ingest(job),
        "fit": fit.Fit(store, 1.0, {}, c.sessions.gap, {}, 1, None, True),
        "detect": detect.Detect(store, "dry", "dry", c.sessions.gap),
        "choose": beam.ParDo(choose.Sample(store, "dry")),
        "embed": encode.Embed(
            store, "dry", partition, p.k, c.embedding.chunk, c.embedding.model, c.embedding.device, {}, processes=context.options.processes
        ),
        "link": link.steps(context, "dry", DAY, have, None, []),
        "aggregate": aggregate.Aggregate(store, gather, "dry", DAY, aggregate.settings(context), as_of, BUCKETS),
        "release": release.Release(store, "dry", {}),
    }


@dataclass(frozen=True)
class Graph:
    """One job: Beam's options, its stages after fusion (the transforms that run together), and the image of its workers."""

    job: str
    arguments: list[str]
    stages: list[str]
    image: str
    proto: Any  # beam_runner_api_pb2.Pipeline, what is sent to a job server


def build(context: Context, job: str, transform: beam.PTransform) -> Graph:
    """The graph that `engine.execute` would send, fused as a portable runner fuses it. Raises what Beam raises on a wrong one."""
    options = engine.beam_options(context, job)
    image = next((a.partition("=")[2] for a in context.options.arguments(job, "") if a.startswith("--sdk_container_image=")), "")
    pipeline = beam.Pipeline(runner="FnApiRunner", options=options)  # named, never started
    engine.assemble(pipeline, context, job, [], transform, "receipts.json")
    default: Any = environments.SubprocessSDKEnvironment("python")
    if image:
        default = environments.DockerEnvironment.from_container_image(image)
    elif context.options.runner == "spark":
        default = _portable(options)
    proto = pipeline.to_runner_api(default_environment=default)
    fused = translations.create_and_optimize_stages(
        copy.deepcopy(proto),
        phases=[
            translations.annotate_downstream_side_inputs,
            translations.fix_side_input_pcoll_coders,
            translations.expand_sdf,
            translations.expand_gbk,
            translations.sink_flattens,
            translations.greedily_fuse,
            translations.sort_stages,
        ],
        known_runner_urns=frozenset([common_urns.primitives.FLATTEN.urn, common_urns.primitives.GROUP_BY_KEY.urn]),
    )[1]
    stages = []
    for stage in fused:
        names = [_ours(t.unique_name) for t in stage.transforms if t.spec.urn == common_urns.primitives.PAR_DO.urn]
        if names:
            stages.append(" + ".join(dict.fromkeys(names)))
    return Graph(job, context.options.arguments(job, context.store.root), stages, image, proto)


def _portable(options: Any) -> Any:
    from apache_beam.runners.portability.portable_runner import PortableRunner

    if options.view_as(PortableOptions).environment_type == "LOOPBACK":  # its address is known when it has started
        return environments.ExternalEnvironment("localhost:0")
    return PortableRunner._create_environment(options)


def _ours(name: str) -> str:
    """The part of a transform's path that our labels gave: they begin small, Beam's own with a capital."""
    parts = name.split("/")
    return "/".join(parts[: next((i for i, part in enumerate(parts) if part[:1].isupper()), len(parts))]).replace(
        "receipts/receipts", "receipts"
    )


def shown(context: Context, names: list[str]) -> list[str]:
    """Lines of `--dry-run` for jobs: the options that all have, then each job's own and its stages in their order."""
    graphs = [build(context, j, t) for j, t in transforms(context).items() if j in names or (j == "choose" and "embed" in names)]
    common = [a for a in graphs[0].arguments if all(a in g.arguments for g in graphs)]
    out = ["Beam's options of every job:", *(f"  {a}" for a in common)]
    for g in graphs:
        out.append(f"\n{g.job}: {len(g.proto.components.transforms)} transforms, fused into {len(g.stages)} stages")
        out += [f"  option  {a}" for a in g.arguments if a not in common] + [f"  stage   {s}" for s in g.stages]
    return out
