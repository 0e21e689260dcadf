#!/usr/bin/env bash
# Builds, tests and measures plantops on a machine with a CUDA GPU, torch, nvcc, pytest, ninja, cmake, pybind11 and no network.
#
#   benchmarks/gpu.sh [--out DIR] [--pack FILE] [--wheels DIR] [--commit NAME] [--budget SECONDS] [--dry-run] STAGE...
#
# Stages, in the order in which they should run; each ends within ten minutes:
#   build             the compiled module with CUDA kernels, in place, for this card
#   test              the tests of ops, layers and benchmarks, on the card where they can
#   sanitize          compute-sanitizer memcheck and racecheck over small cases
#   host              what a call costs the host, in microseconds over an empty autograd function
#   quick-conv        every shape of planted_conv2d beside its eager peers, to DIR/quick: no torch.compile, fewer rounds
#   quick-losses      the same for the losses
#   quick-sweep       a captured step of the sweep at w=16, with and without crops
#   tune              the table that impl="auto" follows on this card: DIR/tuned/, which later stages read
#   bench-losses      the losses beside eager, torch.compile and liger-kernel
#   bench-conv        planted_conv2d beside its peers; four stages: bench-conv-cifar, -resnet50, -paper4, -paper8
#   bench-linear      planted_linear beside its peers
#   bench-sweep       a captured step of the sweep over candidates beside loops over them, run and captured
#   bench-sweep-compiled  the same loops under torch.compile, run and captured
#   search            a whole CIFAR-10 search from w=8 to 40,600 parameters under a teacher of few epochs; data: PLANTOPS_DATA
#   summary           what the CSV files in DIR and DIR/quick say
#   all               everything above but the quick stages
#   first             build test host quick-conv quick-losses quick-sweep summary: the most of it in the least time
#   second            build bench-losses bench-conv sanitize summary: with compiled peers, in the order of the claims
#
# With --budget all stages together end within so many seconds: what does not fit is cut off, the CSV files keep what is
# measured, and the summary comes last all the same.
#
# CSV files, plots, logs and tables go to DIR (default: $OUT, else runs/gpu). --pack also writes them as one tar.gz after
# each stage. Wheels in DIR of --wheels (default: .whl, wheels) are installed beside the environment, not into it. A stage
# that fails does not stop the next; the exit status is 1 if one did.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
out=${OUT:-runs/gpu}
pack='' wheels='' dry='' budget='' commit=${PLANTOPS_COMMIT:-} stages=()
conv=(bench-conv-cifar bench-conv-resnet50 bench-conv-paper4 bench-conv-paper8)

usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; }

mistake() {
  echo "gpu.sh: $1 (gpu.sh --help shows the stages)" >&2
  exit 2
}

while (($#)); do
  case $1 in
    --out | --pack | --wheels | --commit | --budget)
      (($# > 1)) || mistake "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift
      ;;
    --dry-run) dry=yes ;;
    -h | --help)
      usage
      exit 0
      ;;
    build | test | sanitize | host | quick-conv | quick-losses | quick-sweep | bench-losses | bench-conv-cifar | bench-conv-resnet50 | bench-conv-paper4 | bench-conv-paper8 | bench-linear | bench-sweep | bench-sweep-compiled | search | tune | summary)
      stages+=("$1")
      ;;
    bench-conv) stages+=("${conv[@]}") ;;
    all) stages+=(build test sanitize host tune bench-losses "${conv[@]}" bench-linear bench-sweep bench-sweep-compiled search summary) ;;
    first) stages+=(build test host quick-conv quick-losses quick-sweep summary) ;;
    second) stages+=(build bench-losses "${conv[@]}" sanitize summary) ;;
    *) mistake "no stage or option '$1'" ;;
  esac
  shift
done
((${#stages[@]})) || mistake "name a stage"

export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
[[ $commit ]] || commit=$(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)
export PLANTOPS_COMMIT=$commit PLANTOPS_TUNED=$out/tuned

[[ $budget =~ ^[0-9]*$ ]] || mistake "--budget needs a number of seconds, got $budget"
stage='' started=$SECONDS summing=25 # seconds kept for the summary

# run SECONDS COMMAND...: the command, or with --dry-run what it would be. Less where the budget leaves less.
run() {
  local limit=$1 left
  shift
  if [[ $budget && ! $dry ]]; then
    left=$((budget - SECONDS + started))
    [[ $stage == summary ]] || left=$((left - summing))
    if ((left < 5)); then
      echo "no time left of $budget s: $stage is left out" >&2
      return 75
    fi
    ((left > limit)) || limit=$left
  fi
  if [[ $dry ]]; then
    printf '  timeout %s:' "$limit"
    printf ' %q' "$@"
    echo
  else
    timeout --signal=INT --kill-after=15 "$limit" "$@"
  fi
}

bench() {
  local limit=$1
  shift
  run "$limit" "$python" -m plantops.cli bench "$@" --device cuda --out "$out"
}

# Beside eager peers alone; no plots, which the summary draws.
quick() { run 290 "$python" -m plantops.cli bench "$1" --full --no-compile --rounds 9 --no-plots --device cuda --out "$out/quick"; }

summaries() {
  local folder
  for folder in "$out/quick" "$out"; do
    if [[ $dry ]] || compgen -G "$folder/*.csv" >/dev/null; then
      run 60 "$python" -m plantops.cli bench --summary "$folder"
    fi
  done
}

have() { "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)"; }

# The architecture of the card alone: a third of the time of building all.
architecture() {
  [[ $dry ]] && echo 9.0 && return
  "$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())'
}

build() {
  run 540 env PLANTOPS_BUILD=cuda TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-$(architecture)}" \
    "$python" setup.py build_ext --inplace
  run 50 "$python" -m plantops.cli info
}

tests() {
  local parallel=()
  if [[ ! $dry ]] && have xdist; then parallel=(-n 8 --dist load); fi
  run 580 env OMP_NUM_THREADS=2 "$python" -m pytest -p no:cacheprovider "${parallel[@]}" --junitxml "$out/test.xml" --durations 8 \
    python_tests/ops python_tests/nn python_tests/embed python_tests/bench python_tests/planting/test_replay.py \
    python_tests/train/test_batches.py python_tests/test_registration.py python_tests/test_imports.py \
    python_tests/test_cuda_build.py
}

# NVIDIA's checker is not always on the path of a machine that has nvcc.
find_sanitizer() {
  local nvcc place
  nvcc=$(command -v nvcc || true)
  for place in "$(command -v compute-sanitizer || true)" "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" \
    "${CUDA_HOME:-/usr/local/cuda}/compute-sanitizer/compute-sanitizer" "${nvcc%/*}/compute-sanitizer" \
    "${nvcc%/*}/../compute-sanitizer/compute-sanitizer"; do
    if [[ $place && -x $place ]]; then
      echo "$place"
      return
    fi
  done
  [[ ! $dry ]] || echo compute-sanitizer
}

# sanitizer TOOL OPTION...: every allocation is one of its own, so that a read or write past its end is seen.
sanitizer() {
  local tool=$1 program
  shift
  program=$(find_sanitizer)
  if [[ ! $program ]]; then
    echo "compute-sanitizer is not on this machine: nothing was checked with $tool"
    return
  fi
  run 290 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$program" --tool "$tool" --error-exitcode 9 --target-processes all "$@" \
    "$python" -m plantops.cli bench losses planted_conv2d planted_linear --small --check --no-compile --impls auto,native,triton --device cuda
}

# sweep SECONDS OPTION...
sweep() {
  local limit=$1
  shift
  run "$limit" "$python" benchmarks/bench_sweep.py --device cuda --csv "$out/sweep_cuda.csv" --plot "$out/sweep_cuda.svg" "$@"
}

# Teacher and initial network are trained first; the seconds of each round are in the run's metrics.jsonl and report.
search() {
  if [[ ! ${PLANTOPS_DATA:-} && ! $dry ]]; then
    echo "gpu.sh: the stage search needs CIFAR-10: PLANTOPS_DATA must name its folder" >&2
    return 1
  fi
  run 570 "$python" -m plantops.cli plant --data cifar10 --data-root "${PLANTOPS_DATA:-DATA}" --device cuda --preset paper \
    --teacher-width 128 --teacher-epochs 10 --initial-epochs 20 --width 8 --channels 4 --batch-size 128 --epochs 100 \
    --max-params 40600 --max-rounds 30 --flip --crop 0 --progress plain --out "$out/search"
}

perform() {
  case $1 in
    build) build ;;
    test) tests ;;
    sanitize)
      sanitizer memcheck --report-api-errors no
      sanitizer racecheck
      ;;
    host) bench 60 host ;;
    quick-conv) quick planted_conv2d ;;
    quick-losses) quick losses ;;
    quick-sweep) sweep 60 --parts steps,crops --rounds 5 ;;
    tune) run 590 "$python" -m plantops.cli bench losses planted_conv2d planted_linear --full --device cuda --tune "$out/tuned" ;;
    bench-losses) bench 590 losses --full ;;
    bench-conv-cifar) bench 590 planted_conv2d --full --append --only ' cifar ' ;;
    bench-conv-resnet50) bench 590 planted_conv2d --full --append --only ' resnet50 ' ;;
    bench-conv-paper4) bench 590 planted_conv2d --full --append --only ' paper + 4 ' ;;
    bench-conv-paper8) bench 590 planted_conv2d --full --append --only ' paper + 8 ' ;;
    bench-linear) bench 290 planted_linear --full ;;
    bench-sweep)
      sweep 290 --parts steps --width 8,16,32 --channels 1,4,8 --batch 128,1024
      sweep 190 --parts steps --sites 1,2,3,4
      sweep 100 --parts crops,search --search-rounds 4
      ;;
    bench-sweep-compiled) sweep 590 --parts compiled,search-compiled ;;
    search) search ;;
    summary) summaries ;;
  esac
}

install_wheels() {
  local folder site
  for folder in ${wheels:-.whl wheels}; do
    compgen -G "$folder/*.whl" >/dev/null || continue
    site=${TMPDIR:-/tmp}/plantops-wheels
    run 120 "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$folder"/*.whl
    export PYTHONPATH=$PYTHONPATH:$site
  done
}

# A machine may be new each time: the first stage that needs the compiled module builds it.
built() { compgen -G 'plantops/_C*.so' >/dev/null; }

packed() {
  [[ $pack && ! $dry ]] || return 0
  tar -C "$out" -czf "$pack.part" . && mv "$pack.part" "$pack"
}

[[ $dry ]] || mkdir -p "$out"
install_wheels
lines=() failed=0
for stage in "${stages[@]}"; do
  if [[ $stage != build && $stage != summary && ! $dry ]] && ! built; then
    echo "gpu.sh: no compiled module yet, native kernels will be missing: run the stage build first" >&2
  fi
  echo "== $stage"
  begin=$SECONDS status=0
  if [[ $dry ]]; then
    perform "$stage"
  else
    # A subshell of its own, so that a command that fails ends its stage and not the others.
    set +e
    (
      set -e
      perform "$stage"
    ) 2>&1 | tee "$out/$stage.log"
    status=${PIPESTATUS[0]}
    set -e
  fi
  lines+=("$(printf '%-22s %-7s %5d s' "$stage" "$([[ $status == 0 ]] && echo ok || echo "exit $status")" $((SECONDS - begin)))")
  [[ $status == 0 ]] || failed=1
  if [[ $stage == test && ! $dry ]]; then echo "$status $commit" >"$out/test.status"; fi
  packed
done
printf '\n%s\n' "stages at commit $commit"
printf '%s\n' "${lines[@]}"
if [[ ! $dry && $(cat "$out/test.status" 2>/dev/null) != "0 $commit" ]]; then
  echo "no green tests of this commit in $out: no figure of this folder may be published"
fi
exit $failed
