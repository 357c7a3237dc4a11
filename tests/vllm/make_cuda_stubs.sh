#!/bin/bash
# Gives the CUDA build of torch (the only x86-64 Linux build on PyPI) stub copies of the CUDA
# maths libraries it is linked to, so that it imports without ~2 GB of nvidia-* wheels.
# Nothing ever calls into them on a machine without a GPU; each stub function aborts if called.
# usage: make_cuda_stubs.sh SITE_PACKAGES   (needs gcc and binutils)
set -euo pipefail
SP=$1; L=$SP/torch/lib; D=$SP/nvidia/cu13/lib; mkdir -p "$D"
nm -D --undefined-only "$L"/*.so | awk '{print $NF}' | sed 's/@.*//' | sort -u > $D/.und
stub() { # soname  symbol-regex
  { echo '#include <stdlib.h>'; grep -E "^($2)" $D/.und | sed 's/.*/void &(void){abort();}/' || true; } |
    gcc -shared -fPIC -x c - -w -fno-builtin -Wl,-soname,"$1" -o "$D/$1"
}
stub libcublas.so.13      'cublas[A-KM-Z].*|cublasL[^t].*|cublasXt.*'
stub libcublasLt.so.13    'cublasLt.*'
stub libcudnn.so.9        'cudnn.*'
stub libcufft.so.12       'cufft.*'
stub libcusparse.so.12    'cusparse[^L].*|cusparseL[^t].*'
stub libcusparseLt.so.0   'cusparseLt.*'
stub libcusolver.so.12    'cusolver.*'
stub libcurand.so.10      'curand.*'
stub libnccl.so.2         'nccl.*|pnccl.*'
stub libnvrtc.so.13       'nvrtc.*'
stub libcufile.so.0       'cuFile.*'
stub libnvshmem_host.so.3 'nvshmem.*'
rm -f $D/.und
