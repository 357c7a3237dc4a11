#!/bin/bash
# Puts a gate in front of a real vLLM on the CPU, compares it with that vLLM, plays 32 agent programs through every
# policy and the real tau2-bench through one, and compares the embedded engine with that vLLM.
#   run.sh [--setup]                --setup only installs vLLM and the OpenAI client
# Environment: KVGATE_BIN (a kvgate binary; built if not given), KVGATE_VLLM (where vLLM is kept between runs),
# PYTHON311 (a CPython 3.11). Exit status 0 when every check passed. Needs 5 GB of memory and about twelve minutes.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
folder=${KVGATE_VLLM:-$HOME/.cache/kvgate/vllm}
python=${PYTHON311:-python3.11}
work=$(mktemp -d)
children=()

finish() {
  status=$?
  for child in "${children[@]}"; do kill "$child" 2>/dev/null; done
  for child in "${children[@]}"; do wait "$child" 2>/dev/null; done
  if [ "$status" != 0 ]; then
    for log in "$work"/*.log; do
      [ -s "$log" ] && echo "--- the end of $(basename "$log")" && tail -n 15 "$log"
    done
  fi
  rm -rf "$work"
  exit "$status"
}
trap finish EXIT

fail() {
  echo "tests/vllm/run.sh: $*" >&2
  exit 1
}

# The OpenAI client beside vLLM's own packages, which it must not disturb.
setup() {
  "$here/setup.sh" "$folder" || fail "vLLM cannot be installed"
  local lock="$root/tests/openai/requirements.txt"
  cmp -s "$lock" "$folder/openai.lock" && return
  "$python" -m venv --clear "$folder/openai" &&
    "$folder/openai/bin/pip" install -q --disable-pip-version-check --require-hashes -r "$lock" &&
    cp "$lock" "$folder/openai.lock" || fail "the OpenAI client cannot be installed"
}

free_ports() {
  "$python" - "$1" <<'END'
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for one in sockets:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in sockets))
END
}

# start NAME COMMAND...: in the background, its output in a log, ended when this script ends.
start() {
  local name=$1
  shift
  "$@" > "$work/$name.log" 2>&1 &
  children+=($!)
}

# await NAME URL SECONDS: until it answers 200.
await() {
  local name=$1 url=$2 patience=$3 began=$SECONDS
  until curl -sf -m 5 -o /dev/null "$url"; do
    [ $((SECONDS - began)) -lt "$patience" ] || fail "$name does not answer at $url"
    sleep 0.5
  done
  echo "$name answers after $((SECONDS - began)) s"
}

failed=()
# check NAME COMMAND...: shows the output, goes on after a failure.
check() {
  local name=$1
  shift
  echo "== $name"
  timeout 900 "$@" 2>&1 | tee "$work/check.out"
  [ "${PIPESTATUS[0]}" = 0 ] || failed+=("$name")
}

setup
[ "${1:-}" = --setup ] && exit 0

gate=${KVGATE_BIN:-}
if [ -z "$gate" ]; then
  (cd "$root" && cargo build --quiet) || fail "kvgate does not build"
  gate=$root/target/debug/kvgate
fi
read -r priority fcfs long baseline holding ranking engine_priority engine_fcfs <<< "$(free_ports 8)"
url() { echo "http://127.0.0.1:$1"; }

PORT=$priority start vllm-priority "$here/serve.sh" "$folder"
PORT=$fcfs start vllm-fcfs "$here/serve.sh" "$folder" --scheduling-policy fcfs
await "vLLM (priority)" "$(url "$priority")/health" 400
await "vLLM (fcfs)" "$(url "$fcfs")/health" 400

# Room for one step at a time: a second program waits at the gate.
cat > "$work/holding.toml" <<END
[continuum]
kv_budget_tokens = 1000
out_reserve_tokens = 512
headroom = 0.0
END
start gate "$gate" serve --listen "127.0.0.1:$baseline" --backend "$(url "$priority")" \
  --policy baseline --run-dir "$work/run" --sample-interval 0.5
start gate-holding "$gate" serve --listen "127.0.0.1:$holding" --backend "$(url "$priority")" \
  --policy continuum --config "$work/holding.toml"
# Room for everything: what has to wait does so inside vLLM, in the order of the ranking.
printf '[continuum]\nkv_budget_tokens = 1000000\n' > "$work/ranking.toml"
start gate-ranking "$gate" serve --listen "127.0.0.1:$ranking" --backend "$(url "$priority")" \
  --policy continuum --config "$work/ranking.toml" --forward-priority
await "the gate" "$(url "$baseline")/health" 30
await "the holding gate" "$(url "$holding")/health" 30
await "the ranking gate" "$(url "$ranking")/health" 30

check "a gate in front of vLLM" "$python" "$here/gate_vs_vllm.py" \
  "$(url "$priority")" "$(url "$baseline")" "$(url "$holding")" "$(url "$ranking")" "$work/run"
check "32 programs under KV pressure" "$python" "$here/pressure.py" \
  "$gate" "$(url "$fcfs")" "$(url "$priority")" "$work/pressure"
# tau2-bench's prompts are longer than what the other checks want a cache to hold.
PORT=$long start vllm-long "$here/serve.sh" "$folder" --max-model-len 12288 --num-gpu-blocks-override 1700 \
  --max-num-batched-tokens 4096
await "vLLM (long)" "$(url "$long")/health" 400
check "the real tau2-bench" "$python" "$here/tau2.py" "$gate" "$(url "$long")" "$work/tau2"
check "the OpenAI client" "$folder/openai/bin/python" "$root/tests/openai/differential.py" \
  "$(url "$priority")" "$(url "$baseline")" tiny

for policy in priority fcfs; do
  real=$priority engine=$engine_priority
  [ "$policy" = fcfs ] && real=$fcfs engine=$engine_fcfs
  start "engine-$policy" "$gate" engine --model tiny --listen "127.0.0.1:$engine" --block-size 32 --kv-blocks 100 \
    --max-model-len 3072 --max-num-seqs 8 --max-num-batched-tokens 1024 --cost cpu-tiny --scheduling-policy "$policy"
  await "the engine ($policy)" "$(url "$engine")/health" 30
  check "the embedded engine against vLLM ($policy)" "$python" "$here/scenarios.py" \
    --real "$(url "$real")" --engine "$(url "$engine")" --policy "$policy"
done

if [ ${#failed[@]} != 0 ]; then
  printf 'FAILED: %s\n' "${failed[@]}"
  exit 1
fi
echo "every comparison with vLLM passed"
