#!/usr/bin/env python3
"""Runs the scripted scenarios of scenarios.toml against a real vLLM and the embedded engine, and compares.

Compared are the tokens each request found in the prefix cache, preemptions, the order of admission (first tokens)
and the counters that follow from them. Nothing is slept for: a step waits until /metrics or the stream says that
the server has got there, so the speeds of the two do not matter. Standard library only (Python 3.11 or newer).

Both servers need the limits that scenarios.toml assumes, and nothing else to do:

  vllm serve MODEL --served-model-name tiny --port 8000 --block-size 32 --num-gpu-blocks-override 100 \\
    --max-model-len 3072 --max-num-seqs 8 --max-num-batched-tokens 1024 --enable-prompt-tokens-details \\
    --scheduling-policy fcfs
  kvgate engine --model tiny --listen 127.0.0.1:8001 --block-size 32 --kv-blocks 100 \\
    --max-model-len 3072 --max-num-seqs 8 --max-num-batched-tokens 1024 --cost cpu-tiny --scheduling-policy fcfs

  scenarios.py --real http://127.0.0.1:8000 --engine http://127.0.0.1:8001 --policy fcfs

Scenarios marked with the other policy are left out: run it twice, once for each. Exit status 1 if any differs.
"""

import argparse
import functools
import http.client
import json
import pathlib
import re
import sys
import threading
import time
import urllib.parse
import zlib

SAME_ITERATION_S = 0.010
ATTEMPTS = 3
PATIENCE_S = 60
FLUSH_TOKENS = 3040
COUNTERS = {
    "preemptions": "vllm:num_preemptions_total",
    "prefix_queries": "vllm:prefix_cache_queries_total",
    "prefix_hits": "vllm:prefix_cache_hits_total",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "generation_tokens": "vllm:generation_tokens_total",
}


def tokens(prompt, salt):
    """The token ids of a prompt such as "a640 b32". Ids stay between 16 and 4000: the tiny model has 4096."""
    ids = []
    for segment in prompt.split():
        name, count = re.fullmatch(r"(\D+)(\d+)", segment).groups()
        seed = zlib.crc32(f"{salt}/{name}".encode())
        ids += [16 + zlib.crc32(f"{seed}/{i}".encode()) % 3984 for i in range(int(count))]
    return ids


class Server:
    """One server under test."""

    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        self.host, self.port = parts.hostname, parts.port
        for label, value in (("num_gpu_blocks", "100"), ("block_size", "32")):
            if f'{label}="{value}"' not in self.page():
                sys.exit(f"{url}: not the server the scenarios are written for: {label} is not {value}")

    def page(self):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE_S)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return text

    def metrics(self):
        values = {}
        for line in self.page().splitlines():
            if line.startswith("vllm:"):
                name, value = line.split("{")[0], line.rsplit(" ", 1)[1]
                values[name] = values.get(name, 0.0) + float(value)
        return values

    def in_server(self):
        values = self.metrics()
        running, waiting = values["vllm:num_requests_running"], values["vllm:num_requests_waiting"]
        return int(running), int(waiting)

    def until(self, condition, what):
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {PATIENCE_S} s for {what}")
            time.sleep(0.002)


class Stream(threading.Thread):
    """One streamed completion: what came, and when."""

    def __init__(self, server, ids, output, priority):
        super().__init__(daemon=True)
        self.server, self.usage, self.failure = server, None, None
        self.first = self.last = None
        self.chunks = 0
        self.over = False
        self.connection = http.client.HTTPConnection(server.host, server.port, timeout=PATIENCE_S)
        self.body = json.dumps({
            "prompt": ids, "max_tokens": output, "ignore_eos": True, "temperature": 0, "priority": priority,
            "stream": True, "stream_options": {"include_usage": True},
        })

    def run(self):
        try:
            self.connection.request("POST", "/v1/completions", self.body, {"Content-Type": "application/json"})
            self.read(self.connection.getresponse())
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as failure:
            self.failure = failure
        self.over = True

    def read(self, response):
        if response.status != 200:
            raise ValueError(response.read().decode())
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise ValueError(line.decode())
            if event["choices"]:
                self.last = time.monotonic()
                self.first = self.first or self.last
                self.chunks += 1
            else:
                self.usage = event["usage"]

    def leave(self):
        self.connection.sock.shutdown(2)
        self.connection.sock.close()


class Run:
    """One scenario on one server."""

    def __init__(self, server, scenario, salt):
        self.server, self.scenario, self.salt = server, scenario, salt
        self.streams, self.left = {}, set()

    def play(self):
        # Three long prompts leave nothing in the cache but their own blocks, in an order that does not depend on
        # what was there before.
        for name in ("x", "y", "z"):
            self.finish(self.send({"prompt": f"{name}{FLUSH_TOKENS}", "output": 1}))
        before = self.idle()
        for step in self.scenario["steps"]:
            self.step(step)
        for name, stream in self.streams.items():
            if name not in self.left:
                self.finish(stream)
        return self.result(before, self.idle())

    def step(self, step):
        if "run" in step:
            self.finish(self.start(step["run"], step))
        elif "start" in step:
            stream = self.start(step["start"], step)
            wanted = step.get("tokens")
            if wanted:
                self.server.until(lambda: stream.chunks >= wanted or stream.over, f"token {wanted}")
            else:
                self.server.until(lambda: sum(self.server.in_server()) >= self.open() or stream.over, "arrival")
        elif "wait" in step:
            self.finish(self.streams[step["wait"]])
        elif "abort" in step:
            name = step["abort"]
            self.left.add(name)
            self.streams[name].leave()
            self.server.until(lambda: sum(self.server.in_server()) <= self.open(), f"{name} to leave")
        else:
            self.server.until(lambda: self.server.in_server()[1] == step["waiting"], f"{step['waiting']} waiting")

    def send(self, step):
        ids = tokens(step["prompt"], self.salt)
        stream = Stream(self.server, ids, step["output"], step.get("priority", 0))
        stream.start()
        return stream

    def start(self, name, step):
        self.streams[name] = self.send(step)
        return self.streams[name]

    def open(self):
        return sum(not stream.over for name, stream in self.streams.items() if name not in self.left)

    def finish(self, stream):
        stream.join(PATIENCE_S)
        if stream.failure or stream.usage is None:
            raise RuntimeError(f"request failed: {stream.failure or 'no end'}")

    def idle(self):
        self.server.until(lambda: self.server.in_server() == (0, 0), "an idle server")
        return self.server.metrics()

    def result(self, before, after):
        inexact = self.scenario.get("inexact", [])
        result = {name: int(after[key] - before[key]) for name, key in COUNTERS.items() if name not in inexact}
        done = {name: stream for name, stream in self.streams.items() if name not in self.left}
        result["cached"] = {n: s.usage["prompt_tokens_details"]["cached_tokens"] for n, s in done.items()}
        result["output"] = {n: s.usage["completion_tokens"] for n, s in done.items()}
        for key, moment in (("order", "first"), ("finish", "last")):
            names = self.scenario.get(key, [])
            result[key] = in_order(names, {name: getattr(self.streams[name], moment) for name in names})
        return result


def in_order(names, times):
    """The names by time. Tokens of one iteration reach their threads in any order: they count as simultaneous, and
    keep the order in which the scenario names them. What passes a blocked head is a whole decode earlier."""
    def compare_times(one, other):
        apart = times[one] - times[other]
        return apart if abs(apart) > SAME_ITERATION_S else names.index(one) - names.index(other)
    return sorted(names, key=functools.cmp_to_key(compare_times))


def brief(result):
    if isinstance(result, Exception):
        return type(result).__name__
    cached = "/".join(str(n) for n in result["cached"].values())
    return f"{cached} p{result['preemptions']}"


def compare(scenario, real, engine, salt):
    outcomes = []
    for server in (real, engine):
        try:
            outcomes.append(Run(server, scenario, salt).play())
        except (RuntimeError, TimeoutError, OSError) as failure:
            outcomes.append(failure)
    differences = []
    if any(isinstance(outcome, Exception) for outcome in outcomes):
        differences.append(f"real: {outcomes[0]}, engine: {outcomes[1]}")
    else:
        for key, expected in outcomes[0].items():
            if outcomes[1][key] != expected:
                differences.append(f"{key}: real {expected}, engine {outcomes[1][key]}")
    return outcomes, differences


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", required=True, metavar="URL", help="the real vLLM")
    parser.add_argument("--engine", required=True, metavar="URL", help="the embedded engine")
    parser.add_argument("--policy", choices=("fcfs", "priority"), required=True, help="how both servers schedule")
    parser.add_argument("--only", default="", metavar="TEXT", help="only scenarios whose name contains it")
    arguments = parser.parse_args()
    import tomllib

    path = pathlib.Path(__file__).with_suffix(".toml")
    scenarios = tomllib.loads(path.read_text())["scenario"]
    chosen = [s for s in scenarios if s.get("policy", arguments.policy) == arguments.policy and arguments.only in s["name"]]
    real, engine = Server(arguments.real), Server(arguments.engine)
    salt = f"{time.time_ns()}"
    width = max(len(s["name"]) for s in chosen)
    print(f"{'scenario':{width}} | {'real: cached, preemptions':30} | {'engine':30} | same?")
    failed = 0
    for number, scenario in enumerate(chosen):
        # The servers run in real time, so a busy machine can move a request past an iteration. What differs by
        # design differs every time; what differed only by timing is shown, with the attempt that agreed.
        for attempt in range(1, ATTEMPTS + 1):
            outcomes, differences = compare(scenario, real, engine, f"{salt}/{number}/{attempt}")
            if not differences:
                break
            if attempt < ATTEMPTS:
                print(f"    attempt {attempt} of {scenario['name']!r} differed: {'; '.join(differences)}", flush=True)
        failed += bool(differences)
        left, right = (brief(outcome) for outcome in outcomes)
        same = "NO" if differences else "yes" if attempt == 1 else f"yes, attempt {attempt}"
        print(f"{scenario['name']:{width}} | {left:30} | {right:30} | {same}", flush=True)
        for difference in differences:
            print(f"    {difference}", flush=True)
    print(f"{len(chosen) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
