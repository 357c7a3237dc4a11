#!/bin/bash
# What the simulation says of a plan's sets, before they are played: one JSON object a set, KV size and policy.
#   predict.sh PLAN SETS COST OUT.jsonl        KVGATE names the binary
set -eu
grep -v '^#' "$1" | awk 'NF {print $1, $2, $3}' | sort -u | while read -r blocks set concurrency; do
  "${KVGATE:-kvgate}" simulate --quiet --trace "$2/$set.jsonl" --concurrency "$concurrency" --kv-tokens $(((blocks - 1) * 16)) \
    --history stand-in --cost "$3" --policy baseline,thunderreact,thunderagent,continuum,concurrency,kvgate,bound --out "$4" > /dev/null
done
