"""A worker process that plays nothing: what happens to a simulation is the name of its task.

    answer        a model call, then a reward
    fail:CAUSE    a failure with that cause
    wait:PATH     an answer when the file is there
    die           the process exits with status 3
    die-once:PATH the same, the first time
    silent        nothing, until it is given up; then what came is written to the save path
    hang          nothing more of the whole process, not even that it is alive
    nonsense      a line that is no JSON
    stubborn      a child process whose id is in the save path; orders, their end and SIGTERM are ignored
    busy          beats that tell of 0.9 of a core
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time

lock = threading.Lock()
SILENT = {}


def say(event, **fields):
    line = {"event": event, "at": time.time(), "thread": 1, **fields}
    with lock:
        os.write(1, (json.dumps(line) + "\n").encode())


def answer(job):
    say(
        "llm",
        job=job,
        duration_ms=1.0,
        role="agent",
        step=0,
        model="fake",
        prompt_tokens=1,
        completion_tokens=1,
        tool_calls=0,
        error=None,
    )
    say("played", job=job, duration_ms=1.0, steps=1)
    say("result", job=job, reward=1.0, termination="user_stop")


def write(path, text):
    with open(path + ".part", "w") as file:
        file.write(text)
    os.replace(path + ".part", path)


def play(unit):
    job, task = unit["job"], unit["task_id"]
    kind, _, rest = task.partition(":")
    if kind == "answer":
        answer(job)
    elif kind == "fail":
        say("result", job=job, cause=rest, error="as it was told")
    elif kind == "wait":
        while not os.path.exists(rest):
            time.sleep(0.005)
        answer(job)
    elif kind == "die":
        print("these are its last words", file=sys.stderr, flush=True)
        os._exit(3)
    elif kind == "die-once":
        if not os.path.exists(rest):
            write(rest, "")
            os._exit(3)
        answer(job)
    elif kind == "silent":
        SILENT[job] = unit["save"]
    elif kind == "nonsense":
        os.write(1, b"Hello from a library!\n")
    elif kind == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
        write(unit["save"], str(child.pid))
        answer(job)
        child.wait()
    elif kind == "busy":
        say("beat", cpu_s=10.0, at=100.0)
        say("beat", cpu_s=14.5, at=105.0)
        answer(job)


def main():
    settings = json.loads(sys.stdin.readline())
    say("ready", pid=os.getpid())
    for line in sys.stdin:
        order = json.loads(line)
        if "give_up" in order:
            write(SILENT[order["give_up"]], json.dumps(settings))
        elif order["play"]["task_id"].split(":")[0] == "wait":
            threading.Thread(target=play, args=(order["play"],), daemon=True).start()
        else:
            play(order["play"])
    os._exit(0)


main()
