#!/bin/sh
# Check and measure a training on a machine with a CUDA device. Run it in the root of a checkout,
# in an environment with mla-ray:
#
#     sh benchmarks/gpu.sh [FOLDER]
#
# FOLDER, by default `gpu`, gets what was seen: the machine, the tests, the time of a step at two
# batch sizes and precisions, and a training on emoji with the use of the GPU at each second.
set -eu
out=${1:-gpu}
mkdir -p "$out"
nvidia-smi >"$out/machine.txt"
python -c 'import torch; print(torch.__version__, torch.cuda.get_device_name())' \
    >>"$out/machine.txt"

python -m pytest -q -m gpu tests >"$out/tests.txt" || { cat "$out/tests.txt"; exit 1; }

for batch in 128 1024; do
    for precision in fp32 bf16; do
        python benchmarks/step.py --device cuda --precision "$precision" --batch "$batch" \
            --json "$out/step-$batch-$precision.json"
    done
done

mla data emoji --languages en,de --data "$out/data" --out "$out/tables"
nvidia-smi --query-gpu=timestamp,utilization.gpu,memory.used --format=csv --loop=1 \
    >"$out/utilisation.csv" &
watch=$!
trap 'kill "$watch"' EXIT
mla acquire --language de --pairs "$out/tables/pairs-de.parquet" \
    --captions "$out/tables/captions.parquet" --native ViT-B-32/openai --data "$out/data" \
    --out "$out/packs/de"
