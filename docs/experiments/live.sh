#!/bin/bash
# Plays the cells of a plan on a live vLLM until a budget is spent, and goes on where it left off when it is run again.
# A cell that is not done within three times its seconds, or when the budget is spent, is broken off and says so.
#   live.sh PLAN SETS WORK RESULT.tar.xz BUDGET_S
# PLAN has a line a cell: KV_BLOCKS SET CONCURRENCY POLICY SECONDS, the seconds as the simulation has them; SETS holds
# SET.jsonl; WORK the run directories, kept between calls; RESULT is written anew after each cell, with this call's cells.
# Environment: KVGATE (the binary), PORT (vLLM's), SERVE (a command that serves on PORT with the KV blocks given as its
# last argument and returns when healthy), STOP (a command that ends it), ROUTER and THUNDERAGENT (commands that start
# vllm-router and ThunderAgent before PORT, listening on the port given as their last argument; without one its cells wait). Policies besides those
# of `kvgate quickstart`: vllm-router, ta-upstream, ta-upstream-decay.
set -u
plan=$1 sets=$2 work=$3 result=$4 budget=$5
kvgate=${KVGATE:-kvgate} port=${PORT:-1991} began=$SECONDS
mkdir -p "$work/runs"
new=()

served() { cat "$work/blocks" 2>/dev/null || echo none; }

serve() {
  [ "$(served)" = none ] || $STOP
  rm -f "$work/blocks"
  local start=$SECONDS
  $SERVE "$1" || { echo "vLLM does not serve with $1 blocks"; exit 1; }
  echo "$1" > "$work/blocks"
  echo "## vLLM serves with $1 blocks after $((SECONDS - start)) s"
}

# peer POLICY: starts a gate of another make and sets $url and $peer.
peer() {
  url=http://127.0.0.1:$((port + 100))
  local log="$work/$1.log"
  case $1 in
    vllm-router) setsid $ROUTER $((port + 100)) > "$log" 2>&1 & ;;
    ta-upstream) setsid $THUNDERAGENT $((port + 100)) > "$log" 2>&1 & ;;
    ta-upstream-decay) setsid $THUNDERAGENT --use-acting-token-decay --port $((port + 100)) > "$log" 2>&1 & ;;
  esac
  peer=$!
  for _ in $(seq 60); do curl -sf -m 2 -o /dev/null "$url/v1/models" && return; sleep 0.5; done
  echo "$1 does not answer"
  return 1
}

# look DIR PEER_URL: what the peer and vLLM say while the cell runs, every five seconds.
look() {
  while sleep 5; do
    case $policy in
      vllm-router) curl -sf -m 2 "$url/scheduling/diagnostics" >> "$1/peer.jsonl" && echo >> "$1/peer.jsonl" ;;
      ta-*) curl -sf -m 2 "$url/health" >> "$1/peer.jsonl" && echo >> "$1/peer.jsonl" ;;
    esac
  done
}

figures() {
  python3 - "$1" << 'END_PY'
import json, pathlib, sys
cell = pathlib.Path(sys.argv[1])
s = json.loads((cell / "summary.json").read_text())
w, p = s["whole"], s["program_s"]
holds = [0.0]
if (cell / "steps.jsonl").exists():
    holds += [json.loads(line)["hold_s"] or 0.0 for line in (cell / "steps.jsonl").open()]
errors = sum(s["causes"].values())
print(f"{cell.parent.name} {cell.name}: makespan {w['seconds']:.1f} s, {w['steps_per_s']:.2f} steps/s, hit {s['prefix_hit_rate'] or 0:.3f}, "
      f"program p50 {p['p50']:.1f} p95 {p['p95']:.1f} s, longest hold {max(holds):.1f} s, errors {errors}, complete {s['complete']}")
END_PY
}

pack() { tar -C "$work" -c $(printf 'runs/%s ' "${new[@]}") | xz -T0 -1 > "$result.tmp" && mv "$result.tmp" "$result"; }

while read -r blocks set concurrency policy seconds; do
  case $blocks in '' | '#'*) continue ;; esac
  cell=$set-kv$blocks/c$concurrency-$policy
  [ -e "$work/runs/$cell/done" ] && continue
  case $policy in
    vllm-router) [ -n "${ROUTER:-}" ] || continue ;;
    ta-*) [ -n "${THUNDERAGENT:-}" ] || continue ;;
  esac
  need=$((seconds + seconds / 8 + 8)) change=0
  [ "$(served)" = "$blocks" ] || change=100
  if [ $((SECONDS - began + need + change)) -gt "$budget" ]; then
    echo "## left: $cell needs $((need + change)) s"
    [ $change = 0 ] || break
    continue
  fi
  [ $change = 0 ] || serve "$blocks"
  dir=$work/runs/$cell flags=() peer='' url=''
  mkdir -p "$dir"
  case $policy in
    vllm-router | ta-*) peer "$policy" || { tail -n 5 "$work/$policy.log"; kill -- -"$peer"; continue; }
      flags=(--peer "$policy=$url") ;;
  esac
  curl -sf -m 5 "http://127.0.0.1:$port/metrics" > "$dir/before.txt"
  look "$dir" & looker=$!
  limit=$((seconds * 3 + 60)) left=$((budget - SECONDS + began))
  [ "$left" -gt 0 ] || break
  timeout $((limit < left ? limit : left)) "$kvgate" quickstart --backend "http://127.0.0.1:$port" --trace "$sets/$set.jsonl" --concurrency "$concurrency" \
    --policies "$policy" "${flags[@]}" --stand-in --quiet --keep --out "$work/runs/$set-kv$blocks" > "$dir/play.txt" 2>&1
  status=$?
  kill $looker
  curl -sf -m 5 "http://127.0.0.1:$port/metrics" > "$dir/after.txt"
  [ -z "$peer" ] || kill -- -"$peer"
  if [ $status = 0 ]; then touch "$dir/done"; else echo "## $cell failed:" && tail -n 4 "$dir/play.txt"; fi
  echo "[$((SECONDS - began)) s] $(figures "$dir" 2>&1 | tail -n 1)"
  new+=("$cell")
  pack
done < "$plan"
echo "## $((SECONDS - began)) s of $budget"
