#!/usr/bin/env bash
# torch 2.14.1, torch.compile (inductor) on a CPU with AVX-512, and the environment variable ATEN_CPU_CAPABILITY.
#
# Seen: a function that was compiled in one process with AVX-512 gives wrong numbers in the next one that runs with
# ATEN_CPU_CAPABILITY=avx2 and the same cache folder (the default folder, unless one is named): of 16 neighbouring
# elements 8 are never written. With a cache folder of its own the second process is right.
#
# Contradicts: what the cache is for: an entry may be used again only where the same code would be made.
#
# Reason: the source with its step of 16 elements is kept under a key that does not hold the vector width which the
# variable chooses, and is then compiled with the flags and the vector class of the other width
# (torch/_inductor/codecache.py, FxGraphHashDetails; torch/_inductor/cpu_vec_isa.py, pick_vec_isa).
#
# Output seen:
#   AVX-512, new cache: 0 of 4096 elements wrong
#   AVX2, new cache: 0 of 4096 elements wrong
#   AVX2, the cache of AVX-512: 2048 of 4096 elements wrong
#
# Needs a processor with AVX-512, and a C++ compiler. Exits 0 while this is so, 1 when it has changed (or cannot be seen
# here). FINDINGS_PYTHON may name a Python that has the pinned package.
set -euo pipefail

if ! grep -q avx512f /proc/cpuinfo; then
  echo "this processor has no AVX-512: nothing to see here"
  exit 1
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
  python3 -m venv "$folder/venv"
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1
  python=$folder/venv/bin/python
fi

cd "$folder"
cat > wrong.py <<'PYTHON'
import torch

values = torch.arange(4096, dtype=torch.float32)


@torch.compile
def triple(x):
    return x * 3 + 1


print(int((triple(values) != values * 3 + 1).sum()))
PYTHON

wrong() { # cache folder, further environment
  TORCHINDUCTOR_CACHE_DIR="$folder/$1" env "${@:2}" "$python" wrong.py
}
long=$(wrong first UNUSED=1)
short=$(wrong second ATEN_CPU_CAPABILITY=avx2)
mixed=$(wrong first ATEN_CPU_CAPABILITY=avx2)
echo "AVX-512, new cache: $long of 4096 elements wrong"
echo "AVX2, new cache: $short of 4096 elements wrong"
echo "AVX2, the cache of AVX-512: $mixed of 4096 elements wrong"
if [ "$long" = 0 ] && [ "$short" = 0 ] && [ "$mixed" != 0 ]; then
  echo "as described"
else
  echo "changed"
  exit 1
fi
