#!/bin/bash
# The table of a session's run directories: live against simulated, cell by cell, then the comparison of policies.
#   table.sh RUNS SETS COST [OUT.json]         KVGATE names the binary; RUNS holds SET-kvBLOCKS/cC-POLICY
# `model` is the simulation of the same set under the same policy: ta-upstream is held against thunderagent here, direct
# against baseline; there is no model of vllm-router.
set -eu
python3 - "$@" << 'END_PY'
import json, os, pathlib, re, subprocess, sys, tempfile
runs, sets, cost = map(pathlib.Path, sys.argv[1:4])
kvgate = os.environ.get("KVGATE", "kvgate")
MODEL = {"direct": "baseline", "ta-upstream-decay": "thunderagent:decay=true", "ta-upstream": "thunderagent:decay=false", "vllm-router": None}
rows, sims = [], {}

def simulated(blocks, name, concurrency, policy):
    key = (blocks, name, concurrency, policy)
    if policy and key not in sims:
        with tempfile.TemporaryDirectory() as temp:
            out = pathlib.Path(temp) / "out.jsonl"
            subprocess.run([kvgate, "simulate", "--quiet", "--trace", sets / f"{name}.jsonl", "--concurrency", str(concurrency), "--kv-tokens",
                            str((blocks - 1) * 16), "--history", "stand-in", "--cost", cost, "--policy", policy, "--out", out], check=True, stdout=subprocess.DEVNULL)
            sims[key] = json.loads(out.read_text())
    return sims.get(key)

for cell in sorted(runs.glob("*/c*-*")):
    summary = cell / "summary.json"
    parts = re.fullmatch(r"(.+)-kv(\d+)", cell.parent.name)
    if not summary.exists() or not parts:
        continue
    s = json.loads(summary.read_text())
    name, blocks = parts[1], int(parts[2])
    concurrency, policy = re.fullmatch(r"c(\d+)-(.+)", cell.name).groups()
    steps = [json.loads(line) for line in (cell / "client_steps.jsonl").open()]
    served = [x for x in steps if x["status"] == 200 and x["prompt_tokens"]]
    programs = [json.loads(line) for line in (cell / "programs.jsonl").open()]
    span = max(p["finished_s"] for p in programs) - min(p["started_s"] for p in programs)
    holds = [0.0]
    if (cell / "steps.jsonl").exists():
        holds += [json.loads(line)["hold_s"] or 0.0 for line in (cell / "steps.jsonl").open()]
    row = dict(set=name, kv_blocks=blocks, concurrency=int(concurrency), policy=policy, programs=len(programs), steps=len(served), makespan_s=span,
               steps_per_s=len(served) / span, hit=sum(x["cached_tokens"] or 0 for x in served) / sum(x["prompt_tokens"] for x in served),
               p50_s=s["program_s"]["p50"], p95_s=s["program_s"]["p95"], longest_hold_s=max(holds), complete=s["complete"])
    sim = simulated(blocks, name, int(concurrency), MODEL.get(policy, policy))
    if sim:
        row |= dict(model_makespan_s=sim["makespan_s"], model_hit=sim["hit_true"], model_p95_s=sim["program_p95_s"], model_steps_per_s=sim["steps"] / sim["makespan_s"])
    rows.append(row)
direct = {(r["set"], r["kv_blocks"], r["concurrency"]): r for r in rows if r["policy"] == "direct"}
print("| set | KV blocks | C | policy | makespan s | x direct | p95 x direct | steps/s | hit | p50 s | p95 s | longest hold s | model makespan s | off | model hit | off |")
print("|:--|--:|--:|:--|" + "--:|" * 12)
for r in rows:
    base = direct.get((r["set"], r["kv_blocks"], r["concurrency"]))
    gain = f"{base['makespan_s'] / r['makespan_s']:.2f} | {r['p95_s'] / base['p95_s']:.2f}" if base else "- | -"
    model = "- | - | - | -"
    if "model_hit" in r:
        off = r["model_makespan_s"] / r["makespan_s"] - 1
        model = f"{r['model_makespan_s']:.1f} | {off:+.1%} | {r['model_hit']:.3f} | {r['model_hit'] - r['hit']:+.3f}"
    mark = "" if r["complete"] else " (incomplete)"
    print(f"| {r['set']} | {r['kv_blocks']} | {r['concurrency']} | {r['policy']}{mark} | {r['makespan_s']:.1f} | {gain} | {r['steps_per_s']:.2f} | {r['hit']:.3f} "
          f"| {r['p50_s']:.1f} | {r['p95_s']:.1f} | {r['longest_hold_s']:.1f} | {model} |")
if len(sys.argv) > 4:
    pathlib.Path(sys.argv[4]).write_text(json.dumps(rows, indent=1) + "\n")
END_PY
