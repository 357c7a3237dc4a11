"""A driver that pretends to be the reference fork's: the flags, the requests, the log's grammar and the exit status of
0 are as there; what happens to a task is its id.

    plain...      three steps, one of them with an expert's answer, and a reward
    overflow...   the agent's model finds the conversation too long, which fails the task
    hang          nothing more: a child process whose id is in `hangs` of the working directory, TERM ignored
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from datetime import datetime

from transformers import AutoTokenizer

os.makedirs("keys", exist_ok=True)
tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen3-8B")
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
TOOLS = [{"type": "function", "function": {"name": "call_expert", "parameters": {}}}]


class ContextLengthExceededError(Exception):
    pass


def now(digits=0):
    text = datetime.now().strftime("%Y-%m-%d %H:%M:%S.%f")
    return text[: len(text) - 7 + (digits and digits + 1)]


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with DIRECT.open(request, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        if "maximum context length" in text:
            raise ContextLengthExceededError(f"Context length exceeded: Error code: {error.code}") from error
        raise


class Run:
    def __init__(self, args):
        self.args = args
        self.log = open(os.path.join(args.log_dir, "tau2_global.log"), "a", buffering=1)
        self.eval = open(os.path.join(args.log_dir, "eval_global.log"), "a", buffering=1)

    def say(self, text):
        line = f"[{now()}] {text}"
        print(line, flush=True)
        self.eval.write(line + "\n")

    def record(self, level, task, text):
        line = f"[{level}] {now(3)} task={task} thread={threading.get_ident()} {text}"
        print(line, file=sys.stderr, flush=True)
        self.log.write(line + "\n")

    def at(self, model):
        with open(self.args.model_config_path) as file:
            endpoint = random.choice(json.load(file)[model])
        return f"http://{endpoint['ip_addr']}:{endpoint['port']}/v1/chat/completions"

    def agent(self, job, messages, model):
        assert len(tokenizer(str(messages))["input_ids"]) < 23_000
        body = {"model": model, "messages": messages, "max_tokens": 8000, "temperature": 1}
        if os.path.exists(model):
            body["tools"] = TOOLS
        return post(self.at(model), {**body, "job_id": job, "is_last_step": False})

    def customer(self, messages):
        url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
        body = {"model": self.args.user_llm, "messages": messages, "max_completion_tokens": 16384, "temperature": 1}
        return post(url, {**body, "tools": None})

    def steps(self, name, job):
        messages = [{"role": "system", "content": f"<policy> {name}"}]
        for step, (speaker, hearer) in enumerate([("user", "agent"), ("agent", "env"), ("env", "agent")]):
            if speaker == "user":
                self.customer([{"role": "user", "content": "hi"}])
                self.record("USER_JUDGE", name, f"type=user_sim step={step} model=gpt-5 call_type=openai duration_ms=1.00")
            elif speaker == "agent":
                print(f"DEBUG: Calling vLLM at {self.at(self.args.agent_model)} req_id={uuid.uuid4()}", flush=True)
                self.agent(job, messages, self.args.agent_model)
                self.agent(job, messages, "openai/gpt-oss-20b")
                called = f"type=llm_call step={step} model={self.args.agent_model} call_type=vllm duration_ms=2.00"
                self.record("PROFILE", name, called + " has_tool_calls=True")
            done = f"type=step_complete step={step} total_duration_ms=3.00 from_role={speaker} to_role={hearer}"
            self.record("PROFILE", name, done)

    def play(self, item):
        domain, task = item
        name, job = f"{domain}:{task}", f"tau2:{domain}:{task}:{uuid.uuid4().hex[:8]}"
        who = f"SIMULATION: Domain: {domain}, Task: {task}, Agent: LLMAgent, User: UserSimulator"
        print(f"{now(3)} | INFO     | tau2.run:run_task:476 - STARTING {who}", file=sys.stderr, flush=True)
        try:
            try:
                self.steps(name, job)
                if task == "hang":
                    hang()
            finally:
                post(os.environ["ROUTER_URL"] + "/programs/release", {"job_id": job})
        except Exception as error:
            self.record("ERROR", name, f"LLM call failed permanently: {type(error).__name__}: {error}")
            self.say(f"Task failed: domain={domain} task_id={task} trial=0 error=1 validation error for AssistantMessage")
            return "error", None
        print(f"{now(3)} | INFO     | tau2.run:run_task:568 - FINISHED {who}. Reward: 1.0", file=sys.stderr, flush=True)
        return "ok", 1.0


def hang():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    with open("hangs.part", "w") as file:
        file.write(str(child.pid))
    os.rename("hangs.part", "hangs")
    time.sleep(3600)


def load(args):
    turns = []
    for domain in args.domains:
        tasks = "original_tasks.json" if domain == "airline" else "tasks.json"
        path = os.path.join(os.environ["REPO_PATH"], "data/tau2/domains", domain, tasks)
        with open(path) as file:
            turns.append([(domain, task["id"]) for task in json.load(file)][: args.num_tasks])
    longest = max(len(turn) for turn in turns)
    return [turn[index] for index in range(longest) for turn in turns if index < len(turn)]


def evaluate(run, args):
    started, items = time.time(), load(args)
    run.say(f"Scheduling mode: global (round-robin) total_tasks={len(items)} max_concurrency={args.max_concurrency}")
    counts, folder = {"ok": 0, "error": 0}, os.path.join(args.output_dir, "all_domains")
    os.makedirs(folder, exist_ok=True)
    with ThreadPoolExecutor(args.max_concurrency) as pool:
        waiting = {pool.submit(run.play, item): item for item in items}
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED)[0]:
                (domain, task), (status, reward) = waiting.pop(future), future.result()
                counts[status] += 1
                text = f"[TAU2_TASK_COMPLETE] domain={domain} trial=0 task_id={task} status={status} "
                print((text + f"completed_global={sum(counts.values())} total_global={len(items)}",), flush=True)
                result = {"domain": domain, "task_id": task, "trial": 0, "status": status, "reward": reward}
                with open(os.path.join(folder, f"{domain}__{task}__trial0.json"), "w") as file:
                    json.dump(result, file, indent=2)
    elapsed = max(time.time() - started, 0.001)
    rate = counts["ok"] / elapsed * 60
    ok, error = counts["ok"], counts["error"]
    totals = f"ok={ok} error={error} total={len(items)} elapsed_s={elapsed:.1f} tasks_per_min={rate:.2f}"
    run.say(f"Global evaluation complete: {totals}")
    metrics = {"domains": args.domains, "total": len(items), **counts, "elapsed_s": elapsed, "tasks_per_min": rate}
    with open(os.path.join(args.output_dir, "metrics_global.json"), "w") as file:
        json.dump(metrics, file, indent=2)
    run.say(f"GLOBAL: {'FAILED' if error else 'SUCCESS'}")


def main():
    parser = argparse.ArgumentParser()
    for flag in ("agent-model", "user-llm", "output-dir", "log-dir", "model-config-path", "log-level"):
        parser.add_argument("--" + flag, required=True)
    for flag in ("max-steps", "num-trials", "num-tasks", "max-concurrency"):
        parser.add_argument("--" + flag, type=int)
    parser.add_argument("--domains", nargs="+", required=True)
    parser.add_argument("--schedule-mode", choices=["global"], required=True)
    parser.add_argument("--skip-server-start", action="store_true", required=True)
    args = parser.parse_args()
    os.makedirs(args.log_dir, exist_ok=True)
    if "orchestrator" not in args.agent_model.lower() or "8b" not in args.agent_model.lower():
        sys.exit("the agent's model is not known by its name")
    if os.environ.get("LOGURU_LEVEL") != "INFO":
        sys.exit("every message would be logged")
    evaluate(Run(args), args)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    main()
