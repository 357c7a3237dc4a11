"""A gate in front of a real vLLM against that vLLM itself. Standard library only.

    gate_vs_vllm.py VLLM_URL GATE_URL HOLDING_GATE_URL RANKING_GATE_URL RUN_DIR

GATE_URL runs the baseline policy and records into RUN_DIR; HOLDING_GATE_URL holds a second program while a first
one runs; RANKING_GATE_URL holds nothing and forwards continuum's ranking. All stand in front of VLLM_URL, which
schedules by priority. Prints one line per check and `N passed, M failed`.
"""

import contextlib
import csv
import http.client
import json
import pathlib
import re
import socket
import sys
import threading
import time
import urllib.parse

TESTS = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = TESTS / "fixtures" / "vllm"
sys.path.insert(0, str(TESTS / "openai"))
from sameness import compare, observed  # noqa: E402: found only now

# An abort must have reached the engine after this long.
ABORT_S = 0.5
# How long to wait for something that has to happen.
PATIENCE_S = 60

# Where a client may name its program: a path into the body, or a header.
IDENTITIES = [
    "program_id",
    "job_id",
    "session_id",
    "extra_body.program_id",
    "extra_body.job_id",
    "vllm_xargs.program_id",
    "vllm_xargs.job_id",
    "nvext.agent_context.program_id",
    "header X-Program-ID",
    "header X-Session-ID",
    "header X-Dynamo-Session-ID",
    "header session-id",
    "header x-claude-code-session-id",
]


class Failed(AssertionError):
    """A check that did not hold."""


def expect(condition, *words):
    if not condition:
        raise Failed(" ".join(str(word) for word in words))


def same(direct, gate, what):
    if direct != gate:
        raise Failed(f"{what}: direct {str(direct)[:600]} | gate {str(gate)[:600]}")


class Server:
    """An HTTP server, and what the checks ask of it."""

    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        self.url, self.host, self.port = url.rstrip("/"), parts.hostname, parts.port

    def ask(self, method, path, body=b"", headers=None):
        """Status, headers and body."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=120)
        with contextlib.closing(connection):
            if isinstance(body, (dict, list)):
                body = json.dumps(body).encode()
            base = {"Content-Type": "application/json"} if body else {}
            connection.request(method, path, body, {**base, **(headers or {})})
            response = connection.getresponse()
            text = response.read()
        return response.status, response.getheaders(), text

    def json(self, path):
        status, _, text = self.ask("GET", path)
        expect(status == 200, path, status, text[:200])
        return json.loads(text)

    def chat(self, body, headers=None):
        """A chat completion that must succeed, parsed."""
        status, _, text = self.ask("POST", "/v1/chat/completions", body, headers)
        expect(status == 200, status, text[:300])
        return json.loads(text)

    def open(self, path, body):
        """A request on a socket of its own; closing it is a client that leaves."""
        text = json.dumps(body).encode()
        connection = socket.create_connection((self.host, self.port), timeout=120)
        head = f"POST {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        connection.sendall(head.encode() + text)
        return connection

    def metrics(self):
        """Every sample line by series, as text."""
        _, _, text = self.ask("GET", "/metrics")
        lines = [line for line in text.decode().splitlines() if line and not line.startswith("#")]
        return dict(line.rsplit(" ", 1) for line in lines)

    def metric(self, name):
        """The sum of a family's samples."""
        return sum(float(value) for series, value in self.metrics().items() if series.split("{")[0] == name)


def wait_until(ready, what, patience=PATIENCE_S):
    start = time.monotonic()
    while not ready():
        expect(time.monotonic() - start < patience, "still waiting for", what)
        time.sleep(0.01)
    return time.monotonic() - start


def recorded(name):
    """Path and body of a recorded request."""
    line, body = (FIXTURES / f"{name}.request.txt").read_text().split("\n", 1)
    return line.split(" ")[1], json.loads(body)


def long_chat(prompt="go on", words=0, tokens=3000, **more):
    """A request that runs for many seconds unless it is aborted."""
    messages = [{"role": "user", "content": prompt + " word" * words}]
    return {"model": "tiny", "messages": messages, "max_tokens": tokens, "ignore_eos": True, "temperature": 0, **more}


class Checks:
    """Every `check_...` method is one check; what it returns is a note for the report."""

    def __init__(self, vllm, gate, holding, ranking, run_dir):
        self.vllm, self.gate, self.holding, self.ranking, self.run_dir = vllm, gate, holding, ranking, run_dir
        self.loose = []  # One entry for each stream that was equal but for its chunking.

    def equal(self, method, path, body=b""):
        """Asks vLLM directly and through the gate; the status when nothing differs."""
        stream = isinstance(body, dict) and bool(body.get("stream"))
        direct, gate = (
            lambda server=server: observed(*server.ask(method, path, body)) for server in (self.vllm, self.gate)
        )
        wrong = compare(direct, gate, stream, self.loose)
        expect(not wrong, method, path, str(body)[:120], wrong[:800])
        return direct()["status"]

    def idle(self):
        """Whether nothing runs or waits inside vLLM."""
        running, waiting = (self.vllm.metric(f"vllm:num_requests_{state}") for state in ("running", "waiting"))
        return running == 0 and waiting == 0

    def check_whole_responses_are_equal(self):
        for name in ("chat", "completions", "tool-required", "responses", "chat-stream-usage"):
            path, body = recorded(name)
            self.equal("POST", path, {**body, "temperature": 0, "seed": 1})
        self.equal("POST", *recorded("tokenize-chat"))

    def check_streams_that_did_not_ask_for_usage_are_equal(self):
        for name in ("chat-stream", "completions-stream"):
            path, body = recorded(name)
            body.pop("stream_options", None)
            self.equal("POST", path, {**body, "temperature": 0, "seed": 1})

    def check_tool_streams_are_equal(self):
        path, body = recorded("tool-required-stream")
        self.equal("POST", path, {**body, "temperature": 0})
        body.pop("stream_options")
        self.equal("POST", path, {**body, "temperature": 0})

    def check_anthropic_messages_are_equal(self):
        path, body = recorded("messages-anthropic-stream")
        self.equal("POST", path, {**body, "temperature": 0})

    def check_a_stream_comes_in_pieces(self):
        with contextlib.closing(self.gate.open("/v1/chat/completions", long_chat(tokens=300, stream=True))) as client:
            pieces = 0
            text = b""
            while b"[DONE]" not in text:
                piece = client.recv(65536)
                expect(piece, "the stream broke off")
                text += piece
                pieces += 1
        expect(pieces > 20, "300 tokens came in", pieces, "pieces")

    def check_errors_are_equal(self):
        chat = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
        wrong = [
            {**chat, "model": "nope"},
            {**chat, "messages": []},
            {"model": "tiny"},
            {**chat, "messages": "x"},
            {**chat, "max_tokens": -1},
            {**chat, "max_tokens": 0},
            {**chat, "max_tokens": "x"},
            {**chat, "max_tokens": 100_000},
            {**chat, "temperature": -1},
            {**chat, "n": 0},
            {**chat, "stream_options": {"include_usage": True}},
            {**chat, "tool_choice": "required"},
            {**chat, "messages": [{"role": "user", "content": "word " * 5000}]},
            {**chat, "messages": [{"role": "user", "content": "word " * 5000}], "stream": True},
        ]
        for body in wrong:
            status = self.equal("POST", "/v1/chat/completions", body)
            expect(status >= 400, json.dumps(body)[:120], "was accepted")
        for method, path in (("GET", "/nowhere"), ("GET", "/v1/chat/completions"), ("POST", "/v1/nowhere")):
            self.equal(method, path)

    def check_errors_of_the_gates_own_have_the_same_shape(self):
        for body in (b'{"model":"tiny","messages":[', b"[1,2]", b"", b'{"messages":[]}'):
            status, headers, text = self.gate.ask("POST", "/v1/chat/completions", body)
            expect(status == 400, body, status)
            same("application/json", dict(headers).get("content-type"), "content-type")
            same({"message", "type", "param", "code"}, set(json.loads(text)["error"]), body)

    def check_models_are_equal(self):
        names = []
        for server in (self.vllm, self.gate):
            names.append([(model["id"], model["max_model_len"]) for model in server.json("/v1/models")["data"]])
        same(*names, "models")

    def check_metrics_hold_every_series_of_vllm(self):
        wait_until(self.idle, "an idle engine")
        time.sleep(1)  # Two scrapes: the gate shows what it last saw.
        direct, gate = self.vllm.metrics(), self.gate.metrics()
        mine = {series: value for series, value in direct.items() if series.startswith("vllm:")}
        expect(len(mine) > 100, len(mine), "series")
        wrong = [series for series, value in mine.items() if gate.get(series) != value]
        expect(not wrong, len(wrong), "differ:", wrong[:3])

    def check_a_client_that_leaves_is_aborted(self):
        took = []
        for stream in (False, True):
            client = self.gate.open("/v1/chat/completions", long_chat(stream=stream, job_id="leaver"))
            wait_until(lambda: self.vllm.metric("vllm:num_requests_running") == 1, "the request to run")
            if stream:
                expect(client.recv(1024), "the stream has begun")
            client.close()
            took.append(wait_until(self.idle, "an idle engine"))
            expect(took[-1] < ABORT_S, f"idle again after {took[-1]:.2f} s")
        return f"vLLM idle after {took[0] * 1000:.0f} ms, streaming {took[1] * 1000:.0f} ms"

    def check_a_client_that_leaves_while_held_never_reaches_vllm(self):
        first = self.holding.open("/v1/chat/completions", long_chat(stream=True, job_id="first"))
        with contextlib.closing(first):
            wait_until(lambda: self.vllm.metric("vllm:num_requests_running") == 1, "the first to run")
            second = self.holding.open("/v1/chat/completions", long_chat(stream=True, job_id="second"))
            wait_until(lambda: self.holding.metric("kvgate_held_requests") == 1, "the second to be held")
            second.close()
            took = wait_until(lambda: self.holding.metric("kvgate_held_requests") == 0, "the gate to notice")
            expect(took < ABORT_S, f"noticed after {took:.2f} s")
            expect(self.vllm.metric("vllm:num_requests_running") == 1, "only the first runs")
        took = wait_until(self.idle, "an idle engine")
        expect(took < ABORT_S, f"idle again after {took:.2f} s")

    def check_a_held_request_is_served_after_the_first(self):
        bodies = [long_chat(tokens=200, job_id=name) for name in ("one", "two", "three")]
        answers = at_once(self.holding.chat, bodies)
        for answer in answers:
            same(200, answer["usage"]["completion_tokens"], "tokens")
        expect(self.holding.metric("kvgate_hold_seconds_count") >= 2, "two were held")

    def check_pressure_with_preemptions_loses_no_token(self):
        before = self.vllm.metric("vllm:num_preemptions_total")
        # Greedy, not seeded: vLLM 0.32.0's CPU backend dies when it rewinds a seeded generator after a partial prefill.
        bodies = [long_chat(f"{n} go on", words=650, tokens=600, job_id=f"pressure:{n}") for n in range(10)]
        answers = at_once(self.gate.chat, bodies)
        for answer in answers:
            same(600, answer["usage"]["completion_tokens"], "tokens")
        preemptions = self.vllm.metric("vllm:num_preemptions_total")
        expect(preemptions > before, "vLLM preempted nothing: the cache is too large for this check")
        note = f"{preemptions - before:.0f} preemptions"
        name = "vllm:num_preemptions_total"
        wait_until(lambda: self.gate.metric(name) == preemptions, "the gate to show the preemptions", 5)
        return note

    def check_priority_reaches_vllm(self):
        same(200, self.equal("POST", "/v1/chat/completions", long_chat(tokens=2, priority=5)), "status")

    def overtakes(self, gate):
        """Whether a program's second step, sent last, is served before the first step of a newer program."""
        old = long_chat("old", words=1700, tokens=20, job_id=f"old {gate.port}")
        new = long_chat("new", words=1700, tokens=20, job_id=f"new {gate.port}")
        gate.chat({**old, "max_tokens": 1})
        # Neither fits beside the plug, nor beside the other.
        with contextlib.closing(self.vllm.open("/v1/chat/completions", long_chat("plug", words=2300, tokens=600))):
            wait_until(lambda: self.vllm.metric("vllm:num_requests_running") == 1, "the plug to run")
            finished, threads = [], []
            for body in (new, old):
                threads.append(threading.Thread(target=lambda body=body: finished.append((gate.chat(body), body)[1])))
                threads[-1].start()
                waiting = len(threads)
                wait_until(lambda: self.vllm.metric("vllm:num_requests_waiting") == waiting, f"{waiting} to wait in vLLM")
        for thread in threads:
            thread.join()
        same(2, len(finished), "answers")
        return finished[0] is old

    def check_a_ranking_reorders_what_waits_inside_vllm(self):
        expect(not self.overtakes(self.gate), "the older program came first without a ranking: this check shows nothing")
        expect(self.overtakes(self.ranking), "the newer program came first")

    def check_a_ranking_is_accepted_by_every_endpoint(self):
        for name in ("chat", "completions", "responses", "chat-stream-usage", "messages-anthropic-stream"):
            path, body = recorded(name)
            answers = [server.ask("POST", path, {**body, "temperature": 0, "job_id": name}) for server in (self.vllm, self.ranking)]
            same([200, 200], [status for status, _, _ in answers], path)

    def check_identity_fields_are_accepted_and_understood(self):
        for n, place in enumerate(IDENTITIES):
            name, body, headers = f"agent {n}", long_chat(tokens=1), {}
            if place.startswith("header "):
                headers[place.removeprefix("header ")] = name
            else:
                *outer, last = place.split(".")
                inner = body
                for key in outer:
                    inner = inner.setdefault(key, {})
                inner[last] = name
            self.gate.chat(body, headers)
            expect(name in self.gate.json("/programs"), place, "was not understood")
            _, _, text = self.gate.ask("POST", "/programs/release", {"job_id": name})
            same({"job_id": name, "released": True}, json.loads(text), place)

    def check_counted_tokens_are_vllms(self):
        body = long_chat(words=300, tokens=20, job_id="counted", stream=True)
        _, _, text = self.gate.ask("POST", "/v1/chat/completions", body)
        expect(b'"usage"' not in text, "usage that nobody asked for was shown")
        body = {**body, "job_id": "told", "stream_options": {"include_usage": True}}
        _, _, text = self.gate.ask("POST", "/v1/chat/completions", body)
        usage = [json.loads(line[6:]) for line in text.decode().splitlines() if line.startswith("data: {")][-1]["usage"]
        expect(usage["prompt_tokens_details"]["cached_tokens"] > 0, usage)
        steps = {step["program"]: step for step in self.steps_until(lambda steps: "told" in [s["program"] for s in steps])}
        for name in ("counted", "told"):
            step = steps[name]
            counted = [step["prompt_tokens"], step["output_tokens"], step["outcome"], step["status"]]
            same([usage["prompt_tokens"], 20, "length", 200], counted, name)
        same(usage["prompt_tokens_details"]["cached_tokens"], steps["told"]["cached_tokens"], "cached")
        context = self.gate.json("/programs")["told"]["context_len"]
        same(usage["total_tokens"], context, "context")

    def steps_until(self, ready):
        path = self.run_dir / "steps.jsonl"
        steps = []

        def read():
            lines = path.read_text().splitlines() if path.exists() else []
            steps[:] = [json.loads(line) for line in lines]
            return ready(steps)

        wait_until(read, "the steps to be written", 10)
        return steps

    def check_samples_have_the_reference_layout_and_vllms_values(self):
        wait_until(self.idle, "an idle engine")
        usage = {s: v for s, v in self.vllm.metrics().items() if s.startswith("vllm:kv_cache_usage_perc{")}
        path = self.run_dir / "kv_cache_timeseries.csv"
        start = time.time()
        rows = []

        def sampled():
            with path.open(newline="") as file:
                rows[:] = list(csv.DictReader(file))
            # A whole second and a sample interval later than `start`: nothing of before is left.
            return bool(rows) and float(rows[-1]["ts_unix"]) > start + 2

        wait_until(sampled, "two more samples", 20)
        same("ts_iso,ts_unix,port,metric,value", path.read_text().splitlines()[0], "header")
        last = rows[-1]
        same([(s.replace(",", ";"), v) for s, v in usage.items()], [(last["metric"], last["value"])], "sample")
        same(str(self.vllm.port), last["port"], "port")
        expect(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", last["ts_iso"]), last["ts_iso"])
        pressed = max(float(row["value"]) for row in rows)
        expect(0.5 < pressed <= 1, "the highest sampled usage is", pressed)
        wide = json.loads((self.run_dir / "kv_samples.jsonl").read_text().splitlines()[-1])
        families = {
            "running": "vllm:num_requests_running",
            "waiting": "vllm:num_requests_waiting",
            "preemptions": "vllm:num_preemptions_total",
            "prefix_hits": "vllm:prefix_cache_hits_total",
            "prefix_queries": "vllm:prefix_cache_queries_total",
            "kv_usage": "vllm:kv_cache_usage_perc",
        }
        for key, family in families.items():
            same(self.vllm.metric(family), float(wide[key]), family)

    def check_every_gauge_is_back_at_zero(self):
        for gate in (self.gate, self.holding, self.ranking):
            for gauge in ("kvgate_held_requests", "kvgate_in_flight"):
                same(0.0, gate.metric(gauge), gauge)
            same({False}, {program["inflight"] for program in gate.json("/programs").values()} | {False}, "programs")


def at_once(call, bodies):
    """Calls with every body at the same time; the answers in order."""
    answers = [None] * len(bodies)
    wrong = []

    def one(n):
        try:
            answers[n] = call(bodies[n])
        except Exception as error:  # Shown by the check, not by the thread.
            wrong.append(error)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expect(not wrong, len(wrong), "of", len(bodies), "failed:", wrong[:1])
    return answers


def main():
    *servers, run_dir = sys.argv[1:]
    checks = Checks(*map(Server, servers), pathlib.Path(run_dir))
    names = [name for name in vars(Checks) if name.startswith("check_")]
    failed = 0
    for name in names:
        start = time.monotonic()
        try:
            note = getattr(checks, name)()
            word = f"ok, {note}" if note else "ok"
        except Exception as error:  # One check that fails must not hide the others.
            failed += 1
            word = f"FAILED: {type(error).__name__}: {error}"
        print(f"{name.removeprefix('check_').replace('_', ' ')} ({time.monotonic() - start:.1f} s): {word}", flush=True)
    print(f"{len(checks.loose)} streams were equal but for their chunking")
    print(f"{len(names) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
