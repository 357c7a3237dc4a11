#!/usr/bin/env python3
"""The real tau2-bench before a real vLLM: `kvgate experiment run`, whose gate stands between.

    tau2.py KVGATE VLLM_URL FOLDER

KVGATE is the binary; VLLM_URL is a vLLM whose context of LENGTH tokens holds every conversation that is cut off after a
few short replies, but no telecom agent with a few long ones. The model's weights are random, so the talk is nonsense
and no tool is called; what tau2 sends (system prompts, tool schemas, identities, releases) and how it takes errors is
real. No call may be lost, sent twice or left behind, as counted by tau2's own processes, by the gate and by vLLM. FOLDER
gets the run directories. Standard library only. Exit status 1 if anything is amiss.
"""

import collections
import json
import pathlib
import re
import subprocess
import sys

from gate_vs_vllm import Failed, Server, expect, same
from pressure import SERVED, lines

LENGTH = 12288
# The first one may have to install tau2-bench.
PLAY_S = 400
OVERFLOW = "context_overflow"
# Without its tools, no agent's prompt would have so many tokens.
AGENT_TOKENS = 3000


class Play:
    """One run of four tasks, all at once."""

    def __init__(self, kvgate, vllm, folder):
        self.kvgate, self.vllm, self.folder = kvgate, vllm, folder

    def play(self, *flags):
        before = self.finished()
        command = [self.kvgate, "experiment", "run", "--quiet", "--workload", "tau2", "--backend", self.vllm.url]
        command += ["--listen", "127.0.0.1:0", "--policy", "thunderreact", "--out", self.folder, *flags]
        command += ["--tasks", "4", "--concurrency", "4"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PLAY_S)
        self.words = done.stdout + done.stderr
        self.finished_by_vllm = self.finished() - before
        for kind in ("events", "steps", "rewards"):
            setattr(self, kind, lines(self.folder / f"{kind}.jsonl"))
        self.calls = [event for event in self.events if event["event"] == "llm"]
        return self

    def finished(self):
        return int(self.vllm.metric("vllm:request_success_total"))

    def check_every_task_has_one_last_word(self):
        tasks = collections.Counter((reward["domain"], reward["task_id"]) for reward in self.rewards)
        expect(len(tasks) == 4 and set(tasks.values()) == {1}, "tasks played:", dict(tasks), self.words[-500:])
        expect(all(reward["last_word"] for reward in self.rewards), "not the last word:", self.rewards)

    def check_every_call_was_recorded_once(self):
        """By program, in order, with the same tokens: a call of the client is a step of the gate."""
        sent, recorded = collections.defaultdict(list), collections.defaultdict(list)
        for call in self.calls:
            name = call["job_id"] + (":user" if call["role"] == "user" else "")
            sent[name].append((call["prompt_tokens"], call["completion_tokens"]))
        for step in sorted(self.steps, key=lambda step: step["arrived_s"]):
            recorded[step["program"]].append((step["prompt_tokens"], step["output_tokens"]))
        same(dict(sent), dict(recorded), "calls of the clients and steps of the gate")
        same(8, len(sent), "an agent and a customer in each task")

    def check_vllm_finished_what_was_served(self):
        served = [step for step in self.steps if step["status"] == 200]
        same(len(served), self.finished_by_vllm, "steps of status 200 and requests that vLLM finished")
        for step in served:
            expect(step["outcome"] in SERVED, step["program"], step["outcome"])
        for state in ("running", "waiting"):
            same(0.0, self.vllm.metric(f"vllm:num_requests_{state}"), f"{state} inside vLLM")

    def check_tools_were_sent(self):
        least = min(call["prompt_tokens"] for call in self.calls if call["role"] == "agent" and not call["error"])
        expect(least > AGENT_TOKENS, "an agent's prompt of only", least, "tokens: no tools")

    def check_nothing_is_left(self):
        """The gate's last words: nothing cut or refused, no program that nobody released."""
        last = re.sub(r"\x1b\[[0-9;]*m", "", (self.folder / "serve.log").read_text()).splitlines()[-1]
        expect(last.endswith("stopped refused=0 quiet=true programs=0"), "the gate ended with", last)
        odd = {event["event"] for event in self.events} & {"release_failed", "worker_died"}
        expect(not odd, odd)

    def check_all(self):
        for name in dir(self):
            if name.startswith("check_") and name != "check_all":
                getattr(self, name)()
        return self

    def failures(self):
        """Domain and cause of the tasks that failed."""
        failed = [reward for reward in self.rewards if reward["failure"]]
        return collections.Counter((reward["domain"], reward["failure"]["cause"]) for reward in failed)


def check_every_domain(kvgate, vllm, folder):
    run = Play(kvgate, vllm, folder).play("--domains", "retail", "telecom", "airline", "--max-steps", "10", "--max-tokens", "24")
    run.check_all()
    same({}, dict(run.failures()), "failures")
    same({"retail", "telecom", "airline"}, {reward["domain"] for reward in run.rewards}, "domains")
    same([200] * 40, [step["status"] for step in run.steps], "statuses")
    most = max(call["prompt_tokens"] for call in run.calls)
    return f"{len(run.steps)} calls of 8 programs, prompts of up to {most} tokens"


def check_overflow(kvgate, vllm, folder):
    """Agents of telecom outgrow the model's context, those of retail play on."""
    direct = overlong(vllm)
    run = Play(kvgate, vllm, folder).play("--domains", "retail", "telecom", "--max-steps", "8", "--max-tokens", "400")
    run.check_all()
    same({("telecom", OVERFLOW): 2}, dict(run.failures()), "failures")
    for reward in run.rewards:
        if reward["failure"]:
            expect(direct in reward["failure"]["error"], "not in vLLM's words:", reward["failure"]["error"], "|", direct)
            steps = [step for step in run.steps if step["program"] == reward["job_id"]]
            same((1, 400), (reward["attempt"], steps[-1]["status"]), "attempt, status")
            same(1, sum(step["outcome"] == OVERFLOW for step in steps), "overflows of a program")
    expect(f"2 failed ({OVERFLOW} 2)" in run.words, "not counted by cause:", run.words[:500])
    return f"{len(run.steps)} calls, 2 of them refused; each ended its program and was not sent again"


def overlong(vllm):
    """What vLLM itself says of a prompt that is too long."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "word " * 2 * LENGTH}], "max_tokens": 400}
    status, _, text = vllm.ask("POST", "/v1/chat/completions", body)
    same(400, status, "a prompt that is too long")
    return json.loads(text)["error"]["message"]


def main():
    kvgate, url, folder = sys.argv[1:]
    folder = pathlib.Path(folder)
    folder.mkdir()
    failed = 0
    checks = [check_every_domain, check_overflow]
    for check in checks:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        try:
            print(f"ok     {name}: {check(kvgate, Server(url), folder / check.__name__)}", flush=True)
        except (Failed, OSError, ValueError, KeyError, subprocess.SubprocessError) as failure:
            failed += 1
            print(f"FAILED {name}: {type(failure).__name__}: {str(failure)[:2000]}", flush=True)
    print(f"{len(checks) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
