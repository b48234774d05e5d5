"""`sayagain traces`: chat traces (OpenTelemetry GenAI, OpenInference) into the log contract.

Spans come as OTLP/JSON (what a collector's file exporter writes) or one span a line. Of each trace, the topmost spans that
hold a message of a user become rows; the tools called below them say what was understood. Conventions: OpenTelemetry
GenAI 1.36 (messages as events), 1.37 and later (`gen_ai.input.messages`); OpenInference (`llm.input_messages.N`, `input.value`).
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipelines.admin_options import TracesOptions
from pipelines.errors import InputError

USER = ("user.id", "enduser.id", "gen_ai.user.id")
SESSION = ("gen_ai.conversation.id", "session.id")
VERSION = ("gen_ai.agent.version", "service.version", "gen_ai.response.model", "gen_ai.request.model", "llm.model_name")
LOCALE = ("user.locale", "enduser.locale")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass
class Span:
    """One span, from either form."""

    trace: str
    id: str
    parent: str
    start: int  # nanoseconds since 1970
    attributes: dict[str, Any]  # its resource's too; its own win
    failed: bool
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


def spans(line: dict[str, Any]) -> Iterator[Span]:
    """The spans of one JSON object: an OTLP envelope of many, or one span. Other objects have none."""
    for resource in line.get("resourceSpans") or []:
        shared = _attributes((resource.get("resource") or {}).get("attributes"))
        for scope in resource.get("scopeSpans") or []:
            for raw in scope.get("spans") or []:
                yield _span(raw, shared)
    context = line.get("context")
    if isinstance(context, dict) or {"traceId", "trace_id", "context.trace_id"} & line.keys():
        yield _span(line, _attributes((line.get("resource") or {}).get("attributes")))


def _span(raw: dict[str, Any], shared: dict[str, Any]) -> Span:
    context = raw.get("context") or {}
    ids = [
        context.get(n) or raw.get(n) or raw.get(c) or raw.get(f"context.{n}") or ""
        for n, c in (("trace_id", "traceId"), ("span_id", "spanId"))
    ]
    flat = {k.removeprefix("attributes."): v for k, v in raw.items() if k.startswith("attributes.") and v is not None}
    status = raw.get("status") or {}
    code = status.get("status_code", status.get("code")) if isinstance(status, dict) else status
    events = [(str(e.get("name")), _attributes(e.get("attributes"))) for e in raw.get("events") or [] if isinstance(e, dict)]
    parent = raw.get("parentSpanId") or raw.get("parent_span_id") or raw.get("parent_id") or ""
    start = _nanoseconds(raw.get("startTimeUnixNano", raw.get("start_time")))
    attributes = shared | _attributes(raw.get("attributes")) | flat
    failed = str(code).upper().removeprefix("STATUSCODE.").removeprefix("STATUS_CODE_") in ("2", "ERROR") or "error.type" in attributes
    return Span(str(ids[0]), str(ids[1]), str(parent), start, attributes, failed, events)


def _attributes(found: Any) -> dict[str, Any]:
    """OTLP's list of keys and typed values, or a plain (perhaps nested) object, as one flat object."""
    if isinstance(found, list):
        return {a["key"]: _value(a.get("value")) for a in found if isinstance(a, dict) and "key" in a}
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for k, v in value.items():
                walk(f"{prefix}.{k}" if prefix else str(k), v)
        else:
            flat[prefix] = value

    walk("", found if isinstance(found, dict) else {})
    return flat


def _value(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "arrayValue" in value:
        return [_value(v) for v in value["arrayValue"].get("values", [])]
    if "kvlistValue" in value:
        return {v["key"]: _value(v.get("value")) for v in value["kvlistValue"].get("values", [])}
    if "intValue" in value:
        return int(value["intValue"])
    return next(iter(value.values()), None)


def _nanoseconds(value: Any) -> int:
    """Of a span's start; -1 where there is none that can be read."""
    try:
        if isinstance(value, str) and not value.strip().isdigit():
            at = datetime.fromisoformat(value.strip())
            at = at if at.tzinfo else at.replace(tzinfo=UTC)
            return (at - _EPOCH) // timedelta(microseconds=1) * 1_000
        return int(value)
    except (ValueError, TypeError, OverflowError):
        return -1


# messages


@dataclass(frozen=True)
class Message:
    """Who said what, and the tools that were called in it: (name, arguments as JSON)."""

    role: str
    text: str
    tools: tuple[tuple[str, str | None], ...] = ()


def messages(span: Span, side: str) -> list[Message]:
    """Of one side of a span (input or output), whichever convention has them; [] when its content was not recorded."""
    a = span.attributes
    plain = _listed(a.get(f"gen_ai.{side}.messages"))
    if plain is None:
        plain = _numbered(a, f"llm.{side}_messages") or _numbered(a, "gen_ai.prompt" if side == "input" else "gen_ai.completion")
    if not plain:
        wanted = ("gen_ai.user.message",) if side == "input" else ("gen_ai.assistant.message", "gen_ai.choice")
        plain = [{"role": "user" if side == "input" else "assistant", **_unpacked(e)} for name, e in span.events if name in wanted]
    if not plain and a.get(f"{side}.value") not in (None, "") and not str(a.get(f"{side}.mime_type", "")).endswith("json"):
        plain = [{"role": "user" if side == "input" else "assistant", "content": a[f"{side}.value"]}]
    return [m for m in map(_message, plain) if m]


def _listed(value: Any) -> list[Any] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, list) else None


def _unpacked(event: dict[str, Any]) -> dict[str, Any]:
    """An event's message: its own attributes, or what `message` or `gen_ai.choice` holds as JSON."""
    inner = event.get("message")
    try:
        return dict(json.loads(inner)) if isinstance(inner, str) else event
    except (ValueError, TypeError):
        return event


def _numbered(attributes: dict[str, Any], prefix: str) -> list[dict[str, Any]]:
    """`prefix.3.message.role` and its like as a list of objects."""
    found: dict[int, dict[str, Any]] = defaultdict(dict)
    for name, value in attributes.items():
        if name.startswith(prefix + "."):
            number, _, rest = name.removeprefix(prefix + ".").partition(".")
            if number.isdigit():
                found[int(number)][rest.removeprefix("message.")] = value
    return [found[i] for i in sorted(found)]


def _message(raw: Any) -> Message | None:
    if not isinstance(raw, dict):
        return None
    texts, tools = [], []
    parts = raw.get("parts", raw.get("content"))
    for part in parts if isinstance(parts, list) else [parts]:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and part.get("type", "text") in ("text", "input_text", "output_text"):
            texts.append(str(part.get("content", part.get("text")) or ""))
        elif isinstance(part, dict) and part.get("type") in ("tool_call", "tool_use") and part.get("name"):
            tools.append((str(part["name"]), _json(part.get("arguments", part.get("input")))))
    for key in sorted(k for k in raw if k.startswith("tool_calls.") and k.endswith("function.name")):
        tools.append((str(raw[key]), _json(raw.get(key.removesuffix("name") + "arguments"))))
    for call in raw["tool_calls"] if isinstance(raw.get("tool_calls"), list) else ():
        function = call.get("function", call) if isinstance(call, dict) else {}
        if function.get("name"):
            tools.append((str(function["name"]), _json(function.get("arguments"))))
    texts += [str(v) for k, v in sorted(raw.items()) if k.startswith("contents.") and k.endswith("message_content.text")]
    return Message(str(raw.get("role", "")), "\n".join(t for t in texts if t).strip(), tuple(tools))


def _json(value: Any) -> str | None:
    """Arguments as the text of a JSON object; None where they are none."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return None
    return json.dumps(found, sort_keys=True, ensure_ascii=False) if isinstance(found, dict) else None


# rows


def _called(span: Span) -> tuple[str, str | None] | None:
    """The tool that a span runs, None when it runs none."""
    a = span.attributes
    kind = a.get("gen_ai.operation.name"), a.get("openinference.span.kind")
    if kind[0] != "execute_tool" and kind[1] != "TOOL":
        return None
    name = a.get("gen_ai.tool.name") or a.get("tool.name")
    arguments = a.get("gen_ai.tool.call.arguments", a.get("tool.parameters", a.get("input.value")))
    return (str(name), _json(arguments)) if name else None


def _said(span: Span) -> str:
    """The newest message of the user in a span's input; "" when there is none, as in a call that only hands a tool's result back."""
    heard = messages(span, "input")
    return heard[-1].text if heard and heard[-1].role in ("user", "human") else ""


def rows(trace: list[Span], mapped: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The rows of one trace, in the order of their time."""
    by_id = {s.id: s for s in trace}
    said = {s.id: _said(s) for s in trace if _called(s) is None}

    def above(span: Span) -> Iterator[Span]:
        seen = {span.id}
        while (up := by_id.get(span.parent)) is not None and up.id not in seen:
            seen.add(up.id)
            yield up
            span = up

    for span in sorted(trace, key=lambda s: (s.start, s.id)):
        if not said.get(span.id) or any(said.get(up.id) for up in above(span)):
            continue
        below = [s for s in sorted(trace, key=lambda s: (s.start, s.id)) if s is not span and any(up is span for up in above(s))]
        answers = [m for s in (*below, span) for m in messages(s, "output")]
        tools = [t for t in map(_called, below) if t] or [t for m in answers for t in m.tools]
        own = [m.text for m in messages(span, "output") if m.text] or [m.text for m in answers if m.text]
        failed = span.failed or bool(tools and any(s.failed for s in below if _called(s) == tools[-1]))
        inherited: dict[str, Any] = {}
        for up in reversed([span, *above(span)]):
            inherited |= up.attributes
        for s in below:
            inherited = s.attributes | inherited

        def first(names: Iterable[str], found: dict[str, Any] = inherited) -> Any:
            return next((found[n] for n in names if found.get(n) not in (None, "")), None)

        row = {
            "turn_id": f"{span.trace}:{span.id}",
            "timestamp": None if span.start < 0 else (_EPOCH + timedelta(microseconds=span.start // 1_000)).isoformat(),
            "user_id": first(USER),
            "session_id": first(SESSION),
            "utterance": said[span.id],
            "locale": first(LOCALE),
            "assistant_version": first(VERSION),
            "intent": tools[-1][0] if tools else None,
            "slots": tools[-1][1] if tools else None,
            "response": own[-1] if own else None,
            "status": "error" if failed else "completed",
            "channel": "text",
        }
        yield row | {column: first([attribute]) for column, attribute in mapped.items()}


def read(paths: tuple[str, ...], counts: Counter[str]) -> dict[str, list[Span]]:
    """Trace -> its spans, of all files; a trace may lie in several. Raises InputError when a path names nothing."""
    from pipelines import sources

    traces: dict[str, dict[str, Span]] = defaultdict(dict)
    for source in sources.find(paths)[0]:
        for line in sources.lines(source.path):
            counts["lines"] += 1
            found = list(spans(line)) if line is not None else []
            counts["lines without a span"] += not found
            for span in found:
                traces[span.trace][span.id] = span  # exporters send again what was not confirmed
    return {trace: list(found.values()) for trace, found in sorted(traces.items())}


def main(options: TracesOptions) -> int:
    """Write the log, and say what was found."""
    counts: Counter[str] = Counter()
    mapped = dict(m.split("=", 1) for m in options.map)
    traces = read(options.spans, counts)
    out = [row for trace in traces.values() for row in rows(trace, mapped)]
    if not out:
        raise InputError(
            f"--spans: {counts['lines']:,} lines with {len(traces):,} traces hold no message of a user; is the content of messages recorded? "
            "(OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true)"
        )
    aside = Path(f"{options.out}.{os.getpid()}")
    aside.write_text("".join(json.dumps(row, ensure_ascii=True) + "\n" for row in out), encoding="utf-8")
    aside.replace(options.out)
    found = {"traces": len(traces), "rows": len(out), "without a user": sum(r["user_id"] is None for r in out), **counts}
    if options.json:
        print(json.dumps(found))
        return 0
    print(f"{options.out}: " + ", ".join(f"{n:,} {what}" for what, n in found.items()))
    if found["without a user"]:
        print("Rows without a user are rejected by ingest: evidence counts users. --map user_id=ATTRIBUTE names where they are.")
    return 0
