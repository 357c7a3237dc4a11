"""When two answers of an OpenAI-compatible server are the same answer. Standard library only.

Two identical calls to one engine differ in when they were made, in the ids the engine makes up, and, for streams,
in which tokens happened to share a chunk. Everything else must be equal byte for byte.
"""

import json
import re

# Of one connection, or of one moment.
EXCEPTED_HEADERS = {"date", "x-request-id", "connection", "keep-alive", "transfer-encoding"}
EXCEPTED_FIELDS = [
    (re.compile(rb'"created(_at)?":\s*\d+'), rb'"created":0'),
    (re.compile(rb'"(chatcmpl-tool|chatcmpl|cmpl|call|resp|msg|modelperm)[-_][0-9A-Za-z_-]+"'), rb'"\1-0"'),
]
# How often a stream is asked for again until its chunking is equal too.
STREAM_CHANCES = 5


def normal(body):
    """A body with made-up values evened out."""
    for pattern, replacement in EXCEPTED_FIELDS:
        body = pattern.sub(replacement, body)
    return body


def observed(status, headers, body):
    """Everything of a response that must not differ."""
    pairs = sorted((name.lower(), value) for name, value in headers)
    return {
        "status": status,
        "headers": [pair for pair in pairs if pair[0] not in EXCEPTED_HEADERS],
        "body": normal(body).decode(errors="backslashreplace"),
    }


def join_chunks(events):
    """The events of a stream as the texts, calls, endings and usage that they add up to."""
    joined = {}
    for event in events:
        for choice in event.get("choices") or []:
            text = joined.setdefault(choice["index"], {"text": "", "finish": None})
            delta = choice.get("delta") or {}
            text["text"] += (delta.get("content") or "") + (choice.get("text") or "")
            for call in delta.get("tool_calls") or []:
                function = call.get("function") or {}
                text["text"] += f"[{function['name']}]" if function.get("name") else ""
                text["text"] += function.get("arguments") or ""
            text["finish"] = choice.get("finish_reason") or text["finish"]
        if event.get("usage"):
            joined["usage"] = event["usage"]
        if event.get("type"):
            joined.setdefault("events", {})[event["type"]] = True
    return joined


def but_for_chunking(seen):
    """A stream as [`join_chunks`], the keys its events have, and whether it was complete."""
    events = [json.loads(line[6:]) for line in seen["body"].splitlines() if line.startswith("data: {")]
    keys = sorted({key for event in events for key in event})
    complete = "data: [DONE]" in seen["body"]
    return {**seen, "body": {"joined": join_chunks(events), "keys": keys, "complete": complete}}


def compare(direct, gate, is_stream, loose):
    """The first difference between what `direct()` and `gate()` observe; empty when there is none.

    Only the engine's timing decides which tokens share a chunk. A stream that never came out equal byte for byte
    is added to `loose` and compared with its chunks joined.
    """
    direct()  # Warms the prefix cache, so that both find the same.
    for _ in range(STREAM_CHANCES if is_stream else 1):
        pair = [direct(), gate()]
        if pair[0] == pair[1]:
            return ""
    if is_stream:
        loose.append(True)
        pair = [but_for_chunking(seen) for seen in pair]
    return difference(*pair)


def difference(direct, gate):
    """Words for what differs; empty when nothing does."""
    if direct == gate:
        return ""
    if not isinstance(direct, dict) or not isinstance(gate, dict):
        return f"direct {direct!r}\n      gate   {gate!r}"
    keys = [key for key in {**direct, **gate} if direct.get(key) != gate.get(key)]
    return "; ".join(f"{key}: {difference(direct.get(key), gate.get(key))}" for key in keys)
