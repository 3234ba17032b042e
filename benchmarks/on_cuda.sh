#!/bin/bash
# Everything that is written for CUDA, once, on a machine with a GPU: ten minutes, in parts of at
# most three. The order is that of worth; each part writes its result as it ends, so that what a
# short loan of a GPU leaves undone is the end of this list.
#
#   benchmarks/on_cuda.sh [FOLDER]     # results go to FOLDER, by default on_cuda/
#
# It needs a PyTorch with CUDA (2.9 or newer) and this folder, and downloads nothing. Without
# `transformers` the comparison with it is left out; the tests need what `.[dev]` brings.
cd "$(dirname "$0")/.." || exit 2
folder=${1:-on_cuda}
mkdir -p "$folder" || exit 2
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 PYTHONPATH=. TOKENIZERS_PARALLELISM=false
start=$SECONDS
limit=${LIMIT:-600} # seconds for all parts together

# part NAME SECONDS COMMAND...: run it for at most so long, its output in FOLDER/NAME.txt.
part() {
    local name=$1 most=$2 begun=$SECONDS
    shift 2
    local left=$((limit - SECONDS + start))
    if [ "$left" -lt 20 ]; then
        echo "$name: left out, $left s are left" | tee -a "$folder/summary.txt"
        return
    fi
    [ "$most" -gt "$left" ] && most=$left
    timeout -k 5 "$most" "$@" >"$folder/$name.txt" 2>&1
    echo "$name: exit $? after $((SECONDS - begun)) s of $most" | tee -a "$folder/summary.txt"
    tail -n 25 "$folder/$name.txt"
}

# bench NAME SECONDS ARGUMENTS...: a part of the benchmarks, every figure in FOLDER/NAME.json.
bench() {
    local name=$1 most=$2
    shift 2
    part "$name" "$most" "$python" -m benchmarks --device cuda --no-memory \
        --json "$folder/$name.json" "$@"
}

: >"$folder/summary.txt"
part correctness 180 "$python" -m benchmarks.cuda_checks --json "$folder/correctness.json"
bench decode-2b 90 --model shape:2b --stages decode-1-300 --no-reference
bench decode-7b 90 --model shape:7b --stages decode-1-300 --no-reference
bench prefill-2b 60 --model shape:2b --stages prefill-300,prefill-4000 --no-reference
bench vision-2b 90 --model shape:2b --stages vision-16384,vision-4096 --no-reference
bench flash-2b 60 --model shape:2b --stages prefill-4000,vision-16384 --attn flash_attention_2 \
    --no-reference
bench against-transformers 120 --model shape:2b --stages decode-1-300,vision-4096
bench batch-2b 60 --model shape:2b --stages decode-8-300 --no-reference
part tests 120 "$python" -m pytest -q -m "slow or not slow" tests/test_flash.py \
    tests/test_compiled.py tests/test_slow.py
