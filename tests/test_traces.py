"""Chat traces become rows of the log contract, whichever convention they follow."""

from __future__ import annotations

import json

import pytest

from pipelines import traces
from pipelines.admin_options import TracesOptions
from pipelines.errors import InputError, UsageError


def otlp(**attributes):
    kinds = {str: "stringValue", bool: "boolValue", int: "intValue"}
    return [{"key": k.replace("__", "."), "value": {kinds[type(v)]: str(v) if type(v) is int else v}} for k, v in attributes.items()]


def text(role, words, **more):
    return {"role": role, "parts": [{"type": "text", "content": words}], **more}


# As a collector's file exporter writes it: an agent that calls a model, a tool, and the model again (GenAI 1.37)
AGENT = {
    "resourceSpans": [
        {
            "resource": {"attributes": otlp(service__name="kitchen", service__version="v7")},
            "scopeSpans": [
                {
                    "scope": {"name": "agents"},
                    "spans": [
                        {
                            "traceId": "5b8efff798038103d269b633813fc60c",
                            "spanId": "eee19b7ec3c1b174",
                            "name": "invoke_agent kitchen",
                            "kind": 1,
                            "startTimeUnixNano": "1767225600123456789",
                            "endTimeUnixNano": "1767225602000000000",
                            "attributes": otlp(
                                gen_ai__operation__name="invoke_agent",
                                gen_ai__conversation__id="conv_1",
                                user__id="u1",
                                user__locale="en-US",
                                gen_ai__input__messages=json.dumps(
                                    [text("user", "hello"), text("assistant", "hi"), text("user", "set a timer for ten minutes")]
                                ),
                                gen_ai__output__messages=json.dumps([text("assistant", "Ten minutes from now.", finish_reason="stop")]),
                            ),
                            "status": {},
                        },
                        {
                            "traceId": "5b8efff798038103d269b633813fc60c",
                            "spanId": "aaa19b7ec3c1b175",
                            "parentSpanId": "eee19b7ec3c1b174",
                            "name": "chat m",
                            "startTimeUnixNano": "1767225600200000000",
                            "attributes": otlp(
                                gen_ai__operation__name="chat",
                                gen_ai__request__model="m",
                                gen_ai__input__messages=json.dumps([text("user", "set a timer for ten minutes")]),
                            ),
                        },
                        {
                            "traceId": "5b8efff798038103d269b633813fc60c",
                            "spanId": "bbb19b7ec3c1b176",
                            "parentSpanId": "eee19b7ec3c1b174",
                            "name": "execute_tool set_timer",
                            "startTimeUnixNano": "1767225600900000000",
                            "attributes": otlp(
                                gen_ai__operation__name="execute_tool",
                                gen_ai__tool__name="set_timer",
                                gen_ai__tool__call__arguments='{"minutes": 10}',
                            ),
                            "status": {"code": 0},
                        },
                    ],
                }
            ],
        }
    ]
}

# As Python's console exporter writes it, in OpenInference: one model call that asks for a tool; its span failed
MODEL = {
    "name": "ChatCompletion",
    "context": {"trace_id": "0x2", "span_id": "0x21", "trace_state": "[]"},
    "kind": "SpanKind.INTERNAL",
    "parent_id": None,
    "start_time": "2026-01-01T00:00:05.250000Z",
    "end_time": "2026-01-01T00:00:06Z",
    "status": {"status_code": "ERROR"},
    "attributes": {
        "openinference.span.kind": "LLM",
        "session.id": "s2",
        "user.id": "u2",
        "llm.model_name": "m-2",
        "input.value": '{"messages": []}',
        "input.mime_type": "application/json",
        "llm.input_messages.0.message.role": "system",
        "llm.input_messages.0.message.content": "You are an assistant.",
        "llm.input_messages.1.message.role": "user",
        "llm.input_messages.1.message.content": "mpigie hassan",
        "llm.output_messages.0.message.role": "assistant",
        "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "call",
        "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments": '{"who": "hassan"}',
    },
}

# As Phoenix exports it, flat; and GenAI 1.36 with messages as events
CHAIN = {
    "context.trace_id": "3",
    "context.span_id": "31",
    "parent_id": None,
    "start_time": "2026-01-01T00:00:07+00:00",
    "status_code": "OK",
    "attributes.openinference.span.kind": "CHAIN",
    "attributes.input.value": "weather tomorrow",
    "attributes.output.value": "Rain.",
    "attributes.user.id": "u3",
}
EVENTS = {
    "traceId": "4",
    "spanId": "41",
    "startTimeUnixNano": "1767225610000000000",
    "attributes": otlp(gen_ai__operation__name="chat", enduser__id="u4", gen_ai__response__model="m-4"),
    "events": [
        {"name": "gen_ai.user.message", "attributes": otlp(content="ping")},
        {"name": "gen_ai.choice", "attributes": otlp(message='{"content": "pong"}', finish_reason="stop")},
    ],
}
SILENT = {"traceId": "5", "spanId": "51", "startTimeUnixNano": "1", "attributes": otlp(gen_ai__operation__name="chat")}


def convert(tmp_path, *lines, **options):
    file = tmp_path / "spans.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    out = tmp_path / "log.jsonl"
    made = TracesOptions(spans=(str(file),), out=str(out), **options)
    made.validate()
    assert traces.main(made) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_an_agent_with_a_tool_is_one_row(tmp_path):
    (row,) = convert(tmp_path, AGENT)
    assert row == {
        "turn_id": "5b8efff798038103d269b633813fc60c:eee19b7ec3c1b174",
        "timestamp": "2026-01-01T00:00:00.123456+00:00",
        "user_id": "u1",
        "session_id": "conv_1",
        "utterance": "set a timer for ten minutes",
        "locale": "en-US",
        "assistant_version": "v7",
        "intent": "set_timer",
        "slots": '{"minutes": 10}',
        "response": "Ten minutes from now.",
        "status": "completed",
        "channel": "text",
    }


def test_other_conventions(tmp_path):
    model, chain, events = convert(tmp_path, MODEL, CHAIN, EVENTS, SILENT, "not json", {"other": 1})
    assert (model["utterance"], model["intent"], model["slots"], model["status"]) == ("mpigie hassan", "call", '{"who": "hassan"}', "error")
    assert (model["timestamp"], model["session_id"], model["assistant_version"]) == ("2026-01-01T00:00:05.250000+00:00", "s2", "m-2")
    assert (chain["utterance"], chain["response"], chain["user_id"], chain["intent"]) == ("weather tomorrow", "Rain.", "u3", None)
    assert (events["utterance"], events["response"], events["user_id"]) == ("ping", "pong", "u4")


def test_spans_sent_twice_or_in_another_order_change_nothing(tmp_path):
    spans = AGENT["resourceSpans"][0]["scopeSpans"][0]["spans"]
    again = json.loads(json.dumps(AGENT))
    again["resourceSpans"][0]["scopeSpans"][0]["spans"] = spans[::-1]
    assert convert(tmp_path, again, AGENT) == convert(tmp_path, AGENT)


def test_a_failed_tool_is_a_failed_turn_and_a_circle_of_parents_ends(tmp_path):
    broken = json.loads(json.dumps(AGENT))
    first, _, tool = broken["resourceSpans"][0]["scopeSpans"][0]["spans"]
    tool["status"] = {"code": 2}
    first["parentSpanId"] = tool["spanId"]
    (row,) = convert(tmp_path, broken)
    assert row["status"] == "error"
    (row,) = convert(tmp_path, CHAIN | {"attributes.error.type": "timeout"})
    assert row["status"] == "error"


def test_columns_can_be_mapped_and_users_must_be_somewhere(tmp_path, capsys):
    (row,) = convert(tmp_path, CHAIN | {"attributes.user.id": None, "attributes.app.account": "a9"}, map=("user_id=app.account",))
    assert row["user_id"] == "a9"
    convert(tmp_path, CHAIN | {"attributes.user.id": None})
    assert "1 without a user" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--map utterance=x: should be COLUMN=ATTRIBUTE"):
        TracesOptions(spans=("a",), map=("utterance=x",)).validate()


def test_spans_without_content_say_what_to_switch_on(tmp_path):
    with pytest.raises(InputError, match="CAPTURE_MESSAGE_CONTENT"):
        convert(tmp_path, SILENT)


@pytest.mark.slow
def test_ingest_reads_what_was_written(tmp_path):
    from pipelines.cli import main

    convert(tmp_path, AGENT, MODEL, CHAIN, EVENTS)
    assert main(["ingest", f"--logs={tmp_path}/log.jsonl", f"--lake={tmp_path}/lake", "--quiet"]) == 0
    from pipelines.store import Store

    turns = Store(f"{tmp_path}/lake").read("turns", "date=2026-01-01")
    assert sorted(turns["utterance"].to_pylist()) == ["mpigie hassan", "ping", "set a timer for ten minutes", "weather tomorrow"]
    assert sorted(filter(None, turns["intent"].to_pylist())) == ["call", "set_timer"]
