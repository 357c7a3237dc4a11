#!/bin/bash
# What the simulation says of a plan's sets, before they are played: one JSON object a set, KV size and policy.
#   predict.sh PLAN SETS COST OUT.jsonl        KVGATE names the binary
set -eu
plan=$(realpath "$1") sets=$(realpath "$2") out=$(realpath "$4")
cd "$(dirname "$3")" # rows name the preset as it was given
cost=$(basename "$3")
grep -v '^#' "$plan" | awk 'NF {print $1, $2, $3}' | sort -u | while read -r blocks set concurrency; do
  "${KVGATE:-kvgate}" simulate --quiet --trace "$sets/$set.jsonl" --concurrency "$concurrency" --kv-tokens $(((blocks - 1) * 16)) \
    --history stand-in --cost "$cost" --policy baseline,thunderreact,thunderagent,continuum,concurrency,kvgate,bound --out "$out" > /dev/null
done
