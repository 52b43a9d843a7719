#!/usr/bin/env bash
# One command for any CUDA machine (torch 2.6 or newer, no network, at most 8 minutes): the tests for a GPU, one step
# against the official code's, the memory of the stages, and the demo from end to end, all into one JSON file.
#
#     scripts/gpu_check.sh [FILE]              docs/results/gpu.json by default
#     scripts/gpu_check.sh --rehearse [FILE]   the same in small on a CPU, to see that it runs
#
# PYTHON names the interpreter that has the package and its extra `dev`.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1

if [ "${1:-}" = --rehearse ]; then
    shift
    export SALUN_TEST_DEVICE=cpu ACCELERATE_USE_CPU=true
    step="--model small --repeats 1"
    memory="--model small"
    whole=--quick
else
    export SALUN_TEST_DEVICE=cuda ACCELERATE_USE_CPU=false
    gigabytes=$("$python" -c 'import torch; print(torch.cuda.get_device_properties(0).total_memory // 10**9)') || {
        echo "error: a CUDA device is required; --rehearse runs on a CPU." >&2
        exit 2
    }
    batch=1
    [ "$gigabytes" -ge 40 ] && batch=4
    [ "$gigabytes" -ge 75 ] && batch=8
    step="--model sd1 --side 64 --batch $batch --repeats 3"
    memory=
    whole=
fi
result=${1:-docs/results/gpu.json}
parts=${result%.json}_parts  # They stay where the check is interrupted.
rm -rf "$parts"
mkdir -p "$parts"

part() {  # Each is tried, whatever became of the others.
    local started=$SECONDS
    "$python" "$@"
    echo "$((SECONDS - started)) s: $*"
}

part -m pytest -m gpu tests/test_gpu.py -p no:cacheprovider --junitxml "$parts/tests.xml"
part scripts/benchmark.py step $step --json "$parts/step.json"
part scripts/benchmark.py memory $memory --json "$parts/memory.json"
part scripts/benchmark.py end-to-end $whole --json "$parts/end-to-end.json"
"$python" scripts/gpu_check.py "$parts" "$result"
code=$?
rm -r "$parts"
exit $code
