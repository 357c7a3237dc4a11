"""A model for tests of tau2-bench: answers OpenAI chat completions as the agent or as the customer, without thinking.

It knows its role by the system message. The customer states the scenario, answers a few times and stops; the agent
calls read-only tools with arguments that it finds in the conversation, then answers. The same request gets the same
reply. Needs nothing but the standard library.
"""

import argparse
import hashlib
import json
import random
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# What an argument of this name looks like in a conversation.
SHAPES = {
    "user_id": r"\b[a-z]+_[a-z]+_\d{4}\b",
    "order_id": r"#W\d{7}\b",
    "reservation_id": r"\b(?=[A-Z]*\d)[A-Z0-9]{6}\b",
    "phone_number": r"\b\d{3}-\d{3}-\d{4}\b",
    "customer_id": r"\bC\d{4}\b",
    "line_id": r"\bL\d{4}\b",
    "email": r"\b[\w.]+@[\w.]+\w\b",
}
READING = ("get_", "find_", "list_", "check_")
WORDS = "the order account flight line plan data refund please confirm detail change status number help".split()
# Tool calls of the agent after each message of the customer.
CALLS = 2
count_lock = threading.Lock()
counts = {"agent": 0, "user": 0, "in_flight": 0, "most_in_flight": 0}


def draw(body):
    """Random numbers that depend on the request alone."""
    text = json.dumps(body["messages"], sort_keys=True).encode()
    return random.Random(hashlib.sha256(text).digest())


def prose(dice, words):
    return " ".join(dice.choice(WORDS) for _ in range(dice.randint(words // 2, words))) + "."


def arguments(tool, text, dice):
    """Arguments for every required parameter, or None."""
    found = {}
    for name in tool["function"].get("parameters", {}).get("required", []):
        hits = sorted(set(re.findall(SHAPES[name], text))) if name in SHAPES else []
        if not hits:
            return None
        found[name] = dice.choice(hits)
    return found


def call(tools, text, dice):
    """A reading tool and its arguments, or None."""
    reading = [tool for tool in tools if tool["function"]["name"].startswith(READING)]
    dice.shuffle(reading)
    for tool in reading:
        found = arguments(tool, text, dice)
        if found is not None:
            return tool["function"]["name"], found
    return None


def agent(body, dice):
    messages = body["messages"]
    told = max(
        index
        for index, message in enumerate(messages)
        if message["role"] != "tool" and not message.get("tool_calls")
    )
    if (len(messages) - 1 - told) // 2 < CALLS:
        text = "\n".join(str(message.get("content")) for message in messages[1:])
        return None, call(body.get("tools") or [], text, dice)
    return prose(dice, 60), None


def user(body, dice, turns):
    messages = body["messages"]
    said = sum(1 for message in messages if message["role"] == "assistant" and not message.get("tool_calls"))
    if said == 0:
        scenario = re.search(r"<scenario>(.*)</scenario>", messages[0]["content"], re.DOTALL)
        return " ".join(scenario[1].split())[:1500], None
    if said >= turns:
        return "That is all. ###STOP###", None
    if body.get("tools") and messages[-1]["role"] != "tool":
        return None, call(body["tools"], "", dice)
    return prose(dice, 30), None


def reply(body, turns):
    """Role, text, call."""
    dice = draw(body)
    role = "user" if "<scenario>" in str(body["messages"][0]["content"]) else "agent"
    text, called = user(body, dice, turns) if role == "user" else agent(body, dice)
    if text is None and called is None:
        text = prose(dice, 40)
    return role, text, called


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, value):
        body = json.dumps(value).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.wfile.write(head.encode() + body)

    def do_GET(self):
        if self.path == "/v1/models":
            return self.answer({"object": "list", "data": [{"id": "standin", "object": "model"}]})
        return self.answer(counts)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with count_lock:
            counts["in_flight"] += 1
            counts["most_in_flight"] = max(counts["most_in_flight"], counts["in_flight"])
        role, text, called = reply(body, self.server.turns)
        message = {"role": "assistant", "content": text}
        if called:
            name, found = called
            identifier = hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()[:12]
            function = {"name": name, "arguments": json.dumps(found)}
            message["tool_calls"] = [{"id": f"call_{identifier}", "type": "function", "function": function}]
        prompt = len(json.dumps([body["messages"], body.get("tools")])) // 4
        completion = len(json.dumps(message)) // 4
        time.sleep(self.server.delay_s)
        with count_lock:
            counts["in_flight"] -= 1
            counts[role] += 1
        self.answer(
            {
                "id": "chatcmpl-standin",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls" if called else "stop"}],
                "usage": {
                    "prompt_tokens": prompt,
                    "completion_tokens": completion,
                    "total_tokens": prompt + completion,
                },
            }
        )


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--delay-ms", type=float, default=0.0, help="time for every reply")
    options.add_argument("--turns", type=int, default=3, help="messages of the customer before the last one")
    options = options.parse_args()
    server = Server(("127.0.0.1", 0), Handler)
    server.turns, server.delay_s = options.turns, options.delay_ms / 1e3
    print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
