"""One worker process of `kvgate`: plays simulations of tau2-bench, each in a thread of its own.

Standard input: a line of settings, then one order a line, `{"play": {..}}` or `{"give_up": JOB}`; at its end the
process ends at once. The pipe that was standard output carries events, one JSON object a line; what tau2 prints goes
to standard error.
"""

import json
import os
import sys
import threading
import time
import traceback

EVENTS = os.dup(1)
os.dup2(2, 1)
BEAT_S = 5.0
# More connections than a worker will ever need at once.
CONNECTIONS = 256
lock = threading.Lock()


def say(event, **fields):
    fields.setdefault("at", time.time())
    line = {"event": event, "thread": threading.get_ident(), **fields}
    data = (json.dumps(line, default=str) + "\n").encode()
    try:
        with lock:
            while data:
                data = data[os.write(EVENTS, data):]
    except OSError:
        # Nobody listens any more.
        os._exit(1)


def beat():
    while True:
        say("beat", cpu_s=time.process_time())
        time.sleep(BEAT_S)


def load(settings):
    """The function `run(domain, task, seed)` and the loader of tasks, for whichever tau2 is installed."""
    from tau2.evaluator.evaluator import EvaluationType

    agent, user = settings["agent"], settings["user"]
    common = {
        "agent": "llm_agent",
        "user": "user_simulator",
        "llm_agent": agent["model"],
        "llm_args_agent": agent["arguments"],
        "llm_user": user["model"],
        "llm_args_user": user["arguments"],
        "max_steps": settings["max_steps"],
        "max_errors": settings["max_errors"],
    }
    try:
        from tau2.runner.batch import run_single_task
    except ImportError:
        from tau2.run import get_tasks, run_task

        def run(domain, task, seed):
            return run_task(domain=domain, task=task, seed=seed, evaluation_type=EvaluationType.ALL, **common)

    else:
        from tau2.data_model.simulation import TextRunConfig
        from tau2.runner.helpers import get_tasks

        def run(domain, task, seed):
            config = TextRunConfig(domain=domain, **common)
            return run_single_task(config, task, seed=seed, evaluation_type=EvaluationType.ALL)

    return run, get_tasks


def cause_of(error):
    """The word for a failure that kvgate counts by."""
    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    kinds = {type(link).__name__ for link in chain}
    text = " ".join(str(link) for link in chain).lower()
    if "GivenUp" in kinds:
        return "given_up"
    if "ContextWindowExceededError" in kinds or "context length" in text or "context_length_exceeded" in text:
        return "context_overflow"
    if any("Timeout" in kind for kind in kinds):
        return "timeout"
    if any(type(link).__module__.split(".")[0] in ("litellm", "openai", "httpx", "httpcore") for link in chain):
        return "llm"
    return "tau2"


def save(simulation, path):
    with open(path + ".part", "w") as file:
        file.write(simulation.model_dump_json())
    os.replace(path + ".part", path)


def play(unit, run, tasks):
    import shim

    shim.current.job = job = unit["job"]
    try:
        simulation = run(unit["domain"], tasks[unit["domain"]][unit["task_id"]], unit["seed"])
        simulation.trial = unit["trial"]
        save(simulation, unit["save"])
        reason = simulation.termination_reason
        reward = simulation.reward_info.reward if simulation.reward_info else None
        say("result", job=job, reward=reward, termination=getattr(reason, "value", reason))
    except Exception as error:
        words = f"{type(error).__name__}: {error}"[:1000]
        say("result", job=job, cause=cause_of(error), error=words)
    finally:
        shim.given_up.discard(job)


def main():
    threading.Thread(target=beat, daemon=True).start()
    settings = json.loads(sys.stdin.readline())
    import shim

    run, get_tasks = load(settings)
    from tau2.orchestrator.orchestrator import Orchestrator

    shim.install(Orchestrator, settings["identity"], say)
    shim.widen(CONNECTIONS)
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    tasks = {
        domain: {task.id: task for task in get_tasks(domain, task_split_name="base")}
        for domain in settings["domains"]
    }
    say("ready", pid=os.getpid())
    for line in sys.stdin:
        order = json.loads(line)
        if "play" in order:
            threading.Thread(target=play, args=(order["play"], run, tasks), daemon=True).start()
        elif "give_up" in order:
            shim.given_up.add(order["give_up"])


if __name__ == "__main__":
    status = 1
    try:
        main()
        status = 0
    except Exception:
        traceback.print_exc()
    sys.stderr.flush()
    # Simulations in threads do not keep the process.
    os._exit(status)
