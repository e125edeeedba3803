#!/bin/sh
# Inside a build, as root, on Debian 12: what engines make kernels with when they run. A C and a C++ compiler, ninja and Python's headers from
# Debian; with a release such as 13.0, CUDA's compiler and headers of it from PyPI, in /opt/cuda (CUDA_HOME). PyPI's wheels for CUDA 12 hold
# ptxas alone and no nvcc: an engine on CUDA 12 takes /usr/local/cuda of NVIDIA's image. Wheels in /build/cuda, if any, are taken instead.
set -eu
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends gcc g++ libc6-dev ninja-build python3.11-dev >/dev/null
rm -rf /var/lib/apt/lists/* /var/cache/apt/*
[ $# -eq 1 ] || exit 0
target=/opt/cuda-wheels
set -- "nvidia-cuda-nvcc==$1.*" "nvidia-nvvm==$1.*" "nvidia-cuda-crt==$1.*" "nvidia-cuda-runtime==$1.*" "nvidia-cuda-cccl==$1.*"
if ls /build/cuda/*.whl >/dev/null 2>&1; then
  mkdir -p "$target"
  for wheel in /build/cuda/*.whl; do python3.11 -m zipfile -e "$wheel" "$target"; done
else
  # a stage's image has no pip: Debian's comes and goes
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-pip >/dev/null
  /usr/bin/python3 -m pip install --quiet --no-cache-dir --no-deps --target "$target" "$@"
  apt-get purge -y -qq --auto-remove python3-pip >/dev/null
  rm -rf /var/lib/apt/lists/* /var/cache/apt/*
fi
ln -s "$target"/nvidia/cu13 /opt/cuda
ln -s lib /opt/cuda/lib64
chmod +x /opt/cuda/bin/* /opt/cuda/nvvm/bin/*
# It compiles for a GPU that is not here, or the build ends.
echo '__global__ void f(float *x) { x[threadIdx.x] *= 2; }' >/tmp/probe.cu
/opt/cuda/bin/nvcc -arch=sm_90 -c /tmp/probe.cu -o /tmp/probe.o
rm /tmp/probe.cu /tmp/probe.o
