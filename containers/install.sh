#!/bin/sh
# Inside a build: make /opt/venv from the locks in /build. With wheels beside them nothing is fetched (that is how
# `moxin images build` works); without, pip asks its index, which PIP_INDEX_URL and PIP_EXTRA_INDEX_URL choose.
set -eu
python3.11 -m venv --without-pip /opt/venv
pip=$(ls /build/pip-*.whl 2>/dev/null || true)
if [ -n "$pip" ]; then
  # the hashes were checked when the wheels were fetched; a wheel built from sources has none in the lock
  sed -i -e '/^ *--hash=/d' -e 's/ *\\$//' /build/*.lock
fi
install() {
  set -- install --no-deps --no-cache-dir --disable-pip-version-check --root-user-action=ignore --quiet -r "/build/$1"
  if [ -n "$pip" ]; then
    python3.11 "$pip/pip" --python /opt/venv/bin/python "$@" --no-index --find-links /build
  else
    python3.11 -m pip --python /opt/venv/bin/python "$@"
  fi
}
install requirements.lock
if [ -f /build/torch.lock ]; then
  install torch.lock
  # a CUDA build of torch asks for NVIDIA's libraries, a CPU build does not
  if grep -q '^Requires-Dist: nvidia-' /opt/venv/lib/python3.11/site-packages/torch-*.dist-info/METADATA; then
    install cuda.lock
  fi
fi
# What no stage reads: the packages' own tests, headers and static libraries to compile against (there is no compiler).
cd /opt/venv/lib/python3.11/site-packages
find . -type d \( -name tests -o -name test \) -prune -not -path './torch/*' -not -path './lm_eval/*' -exec rm -rf {} +
find . \( -name '*.a' -o -name '*.pyx' -o -name '*.pxd' \) -delete
rm -rf torch/include torch/share pyarrow/include pyarrow/src numpy/_core/include
# Of the AWS services described there, a stage talks to the store and to those that give credentials.
find botocore/data -mindepth 1 -maxdepth 1 -type d -not -name s3 -not -name sts -not -name 'sso*' -exec rm -rf {} +
