#!/bin/bash
# The whole recipe on one GPU: tools/demo_model/train_all.sh OUT_DIR [WORK_DIR]. About 18 minutes on an H200.
# Leaves the model, its held-out sets and eval/report.json in OUT_DIR; progress in WORK_DIR/*/log.txt.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
work=${2:-/tmp/demo_work}
mkdir -p "$work/base" "$work/warm" "$work/recall" "$work/finish"
cd "$here"
export PYTHONUNBUFFERED=1
stamp() { echo "$(date -u +%T) $*"; }

python3 tokenizer.py "$out/tokenizer.json" 4096
stamp "base: 1K tokens, every task"
python3 train.py --tokenizer "$out/tokenizer.json" --work "$work/base" --minutes 60 &
base=$!
# While the GPU is busy with the base, a second process compiles the recall phases' kernels into the cache.
until [ -s "$work/base/log.txt" ] || ! kill -0 $base 2>/dev/null; do sleep 2; done
python3 train.py --tokenizer "$out/tokenizer.json" --work "$work/warm" --recall --steps 1,1,1 --workers 2 \
  >"$work/warm/out.txt" 2>&1 || true &
warm=$!
wait $base
python3 export.py "$work/base/state.pt" "$work/base" "$out/tokenizer.json"
wait $warm || true
stamp "recall: 4K, then 16K tokens"
python3 train.py --tokenizer "$out/tokenizer.json" --work "$work/recall" --minutes 60 --recall \
  --init "$work/base/model.safetensors"
python3 export.py "$work/recall/state.pt" "$work/recall" "$out/tokenizer.json"
stamp "finish: 1K tokens, all parameters"
python3 train.py --tokenizer "$out/tokenizer.json" --work "$work/finish" --minutes 60 --finish \
  --init "$work/recall/model.safetensors"
python3 export.py "$work/finish/state.pt" "$out" "$out/tokenizer.json"
stamp "held-out sets"
python3 make_eval.py "$out/eval"
python3 evaluate.py "$out" "$work/finish/state.pt" >"$work/report.json"
mv "$work/report.json" "$out/eval/report.json"
stamp "done"
