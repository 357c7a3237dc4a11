#!/bin/bash
# Serves the tiny model on 127.0.0.1:$PORT: an API server and an engine core, 0.7 GB of memory each.
#   PORT=8000 serve.sh FOLDER [flags of vllm serve, the last of a kind wins]      FOLDER as filled by setup.sh
# The sizes are those that scenarios.toml assumes: 99 usable blocks of 32 tokens, small enough to be full soon.
folder=${1:?usage: serve.sh FOLDER [flags]}
shift
# Without it a CPU engine core puts its worker into a process of its own: more memory, 20 CPU-s more to start.
export VLLM_ENABLE_V1_MULTIPROCESSING=0
# GiB reserved for KV; --num-gpu-blocks-override decides how much of it is used.
export VLLM_CPU_KVCACHE_SPACE=1
export VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
exec "$folder/venv/bin/vllm" serve "$folder/model" --served-model-name tiny --host 127.0.0.1 --port "${PORT:-8000}" \
  --dtype float32 --enforce-eager --block-size 32 --num-gpu-blocks-override 100 \
  --max-model-len 3072 --max-num-seqs 8 --max-num-batched-tokens 1024 \
  --enable-prefix-caching --enable-prompt-tokens-details --scheduling-policy priority \
  --enable-auto-tool-choice --tool-call-parser hermes \
  --enable-request-id-headers --enable-server-load-tracking --disable-uvicorn-access-log "$@"
