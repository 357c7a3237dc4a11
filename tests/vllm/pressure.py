#!/usr/bin/env python3
"""32 agent programs whose contexts do not fit into a real vLLM's KV cache, once under each policy of the gate.

    pressure.py KVGATE VLLM_URL RANKING_VLLM_URL FOLDER

KVGATE is the binary. Each policy gets a gate of its own in front of VLLM_URL and plays the same trace through it, with
texts that the policies before have not left in the cache; at last continuum once more in front of RANKING_VLLM_URL,
which schedules by priority. No policy may lose, repeat or leave behind a step, as counted by the gate, by vLLM and by
the client. Prints one line per policy, its prefix hit rate and preemptions by vLLM's own counters; FOLDER gets the run
directories. Standard library only. Exit status 1 if anything is amiss.
"""

import collections
import contextlib
import itertools
import json
import pathlib
import random
import subprocess
import sys
import time

from gate_vs_vllm import Failed, Server, expect, same, wait_until

PROGRAMS = 32
STEPS = 10
PLAY_S = 180
SERVED = {"stop", "length", "tool_calls"}
COUNTERS = {
    "served": "vllm:request_success_total",
    "preemptions": "vllm:num_preemptions_total",
    "queried": "vllm:prefix_cache_queries_total",
    "hit": "vllm:prefix_cache_hits_total",
}
POLICIES = ["baseline", "thunderreact", "thunderagent", "continuum", "concurrency", "kvgate"]


# By default ThunderReact waits 2.5 and 10 s between its acts, of which this engine's few seconds leave it hardly one.
SETTINGS = """
[thunderreact]
pause_trigger = 0.8
pause_target = 0.7
pause_cooldown_s = 0.5
resume_trigger = 0.7
resume_target = 0.75
resume_cooldown_s = 0.5
"""

# Figures of a run and how they are shown.
FIGURES = {
    "seconds": ".1f",
    "steps": "d",
    "prefix hit rate": ".3f",
    "by usage": ".3f",
    "preemptions": ".0f",
    "held": "d",
    "mean hold (s)": ".2f",
    "longest (s)": ".2f",
}
WIDTH = 26


def trace():
    """The programs, for `kvgate replay`: contexts grow from about 300 to 1,100 tokens."""
    draw = random.Random(1)
    for number in range(PROGRAMS):
        context, steps = draw.randint(260, 340), []
        for left in reversed(range(STEPS)):
            output = draw.randint(24, 64)
            gaps = {"user": draw.uniform(0.5, 2), "tool:search": draw.uniform(0.1, 0.5), "tool:shell": 0.05}
            then = draw.choices(list(gaps), (1, 2, 2))[0] if left else "end"
            gap = round(gaps.get(then, 0), 3)
            steps.append({"prompt_tokens": context, "output_tokens": output, "then": then, "gap_s": gap})
            context += output + draw.randint(20, 80)
        prefix = {"id": "pressure", "tokens": 150}
        yield {"program": f"pressure-{number}", "kind": "pressure", "shared_prefix": prefix, "steps": steps}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@contextlib.contextmanager
def gate(command, log):
    """A gate on a free port while the block runs."""
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            yield Server(process.stdout.readline().removeprefix("listening on ").strip())
        finally:
            process.terminate()
            expect(process.wait(60) == 0, "the gate ended with", process.returncode)


class Run:
    """The trace under one policy."""

    def __init__(self, kvgate, vllm, folder, trace_file):
        self.kvgate, self.vllm, self.folder, self.trace_file = kvgate, vllm, folder, trace_file
        self.programs = {program["program"]: program["steps"] for program in lines(trace_file)}

    def counters(self):
        return {key: self.vllm.metric(name) for key, name in COUNTERS.items()}

    def play(self, seed, policy, *flags):
        """Plays, checks, and returns the figures."""
        self.folder.mkdir()
        serve = [self.kvgate, "serve", "--listen", "127.0.0.1:0", "--backend", self.vllm.url, "--policy", policy]
        serve += ["--config", self.folder.parent / "settings.toml", "--run-dir", self.folder, "--sample-interval", "0.5", *flags]
        before, start = self.counters(), time.monotonic()
        with gate(serve, self.folder / "gate.log") as server:
            replay = [self.kvgate, "replay", "--url", server.url, "--trace", self.trace_file, "--out", self.folder]
            replay += ["--concurrency", str(PROGRAMS), "--seed", str(seed), "--max-retries", "0", "--quiet"]
            done = subprocess.run(replay, capture_output=True, text=True, timeout=PLAY_S)
            took = time.monotonic() - start
            expect(done.returncode == 0, done.stderr[-500:])
            self.check_nothing_is_left(server)
        grown = {key: value - before[key] for key, value in self.counters().items()}
        steps = self.check_every_step_was_served_once()
        same(len(steps), int(grown["served"]), "requests that vLLM finished")
        self.check_the_client_got_everything()
        return self.figures(took, grown, steps)

    def check_nothing_is_left(self, server):
        for state in ("running", "waiting"):
            same(0.0, self.vllm.metric(f"vllm:num_requests_{state}"), f"{state} inside vLLM")
        for gauge in ("kvgate_held_requests", "kvgate_in_flight"):
            same(0.0, server.metric(gauge), gauge)
        wait_until(lambda: server.json("/programs") == {}, "the programs to be released", 5)

    def check_every_step_was_served_once(self):
        steps = lines(self.folder / "steps.jsonl")
        planned = {(program, index) for program, steps in self.programs.items() for index in range(len(steps))}
        seen = collections.Counter((step["program"], step["step_index"]) for step in steps)
        lost = sorted(planned - seen.keys())
        wrong = sorted(key for key, times in seen.items() if times > 1 or key not in planned)
        expect(not lost and not wrong, len(lost), "steps lost:", lost[:5], len(wrong), "repeated or unknown:", wrong[:5])
        for step in steps:
            name, index = step["program"], step["step_index"]
            expect(step["outcome"] in SERVED and step["status"] == 200, name, index, step["outcome"], step["status"])
            same(self.programs[name][index]["output_tokens"], step["output_tokens"], f"tokens of {name}, {index}")
        return steps

    def check_the_client_got_everything(self):
        ends = {line["program"]: (line["steps"], line["errors"], line["ending"]) for line in lines(self.folder / "programs.jsonl")}
        same({name: (len(steps), 0, "done") for name, steps in self.programs.items()}, ends, "programs")
        summary = json.loads((self.folder / "summary.json").read_text())
        same((True, 0), (summary["complete"], summary["releases_failed"]), "complete, releases that failed")

    def figures(self, took, grown, steps):
        prompt, cached = (sum(step[key] or 0 for step in steps) for key in ("prompt_tokens", "cached_tokens"))
        holds = [step["hold_s"] for step in steps if step["hold_reason"]]
        return {
            "seconds": took,
            "steps": len(steps),
            "prefix hit rate": grown["hit"] / grown["queried"],
            "by usage": cached / prompt,
            "preemptions": grown["preemptions"],
            "held": len(holds),
            "mean hold (s)": sum(holds) / len(holds) if holds else 0.0,
            "longest (s)": max(holds, default=0.0),
        }

    def at_once(self):
        """The most programs between first arrival and last end."""
        spans = collections.defaultdict(list)
        for step in lines(self.folder / "steps.jsonl"):
            spans[step["program"]] += [step["arrived_s"], step["finished_s"]]
        moments = sorted((moment, change) for span in spans.values() for moment, change in ((min(span), 1), (max(span), -1)))
        return max(itertools.accumulate(change for _, change in moments))


def check_pressure(figures, run, capacity):
    """Without it, that nothing was lost would say little."""
    finals = [steps[-1]["prompt_tokens"] + steps[-1]["output_tokens"] for steps in run.programs.values()]
    expect(sum(finals) > 5 * capacity, "contexts of", sum(finals), "tokens fit too well into", capacity)
    same(PROGRAMS, run.at_once(), "programs in flight at once")
    expect(figures["preemptions"] > 0, "no preemption")
    expect(figures["prefix hit rate"] < 0.5, "hit rate", figures["prefix hit rate"])


def kv_capacity(vllm):
    """Tokens that fit into the cache, one block of which vLLM keeps for itself."""
    info = next(series for series in vllm.metrics() if series.startswith("vllm:cache_config_info"))
    labels = dict(part.split("=", 1) for part in info.split("{")[1].rstrip("}").split(",") if "=" in part)
    blocks, size = (int(labels[key].strip('"')) for key in ("num_gpu_blocks", "block_size"))
    return (blocks - 1) * size


def main():
    kvgate, url, ranking_url, folder = sys.argv[1:]
    folder = pathlib.Path(folder)
    folder.mkdir()
    (folder / "settings.toml").write_text(SETTINGS)
    trace_file = folder / "trace.jsonl"
    trace_file.write_text("".join(json.dumps(program) + "\n" for program in trace()))
    fcfs, ranking = Server(url), Server(ranking_url)
    runs = [(policy, fcfs, ()) for policy in POLICIES]
    runs.append(("continuum", ranking, ("--forward-priority",)))
    print(f"{'policy':{WIDTH}} | {' | '.join(FIGURES)}", flush=True)
    failed = 0
    for seed, (policy, vllm, flags) in enumerate(runs, 1):
        name = " ".join([policy, *(flag.strip("-") for flag in flags)])
        run = Run(kvgate, vllm, folder / name.replace(" ", "-"), trace_file)
        try:
            figures = run.play(seed, policy, *flags)
            if policy == "baseline":
                check_pressure(figures, run, kv_capacity(vllm))
            else:
                expect(figures["held"] > 0, "the policy held nothing")
        except (Failed, OSError, ValueError, KeyError, subprocess.SubprocessError) as failure:
            failed += 1
            print(f"{name:{WIDTH}} | FAILED: {type(failure).__name__}: {str(failure)[:2000]}", flush=True)
            continue
        cells = (f"{figures[key]:{len(key)}{shape}}" for key, shape in FIGURES.items())
        print(f"{name:{WIDTH}} | {' | '.join(cells)}", flush=True)
    print(f"{len(runs) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
