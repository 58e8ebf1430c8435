#!/usr/bin/env bash
# Builds Windlass and compares its modes on MNIST, dealt evenly (iid) and by class (shards:2), in under ten minutes on two
# cores, with rates that were chosen before. scripts/compare.sh --long lets each mode choose its rate anew and runs three
# seeds, which takes about half an hour. Further flags go to windlass compare.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/build.sh"

long=()
if [[ "${1:-}" == --long ]]; then
    shift
    long=(--rate auto --seeds 3)
fi

# What `--rate auto` chose with seed 1, for scripts/compare.sh without --long.
declare -A rates=(
    [iid]="sync=0.464,async=0.215,ssp:4=0.215,fedavg=0.215,fedbuff:2=0.215"
    [shards:2]="sync=0.464,async=0.215,ssp:4=0.215,fedavg=0.215,fedbuff:2=0.1"
)
declare -A targets=([iid]=0.97 [shards:2]=0.9)

for partition in iid shards:2; do
    chosen=(--mode-rates "${rates[$partition]}")
    folder="compare-2nn-${partition//:/-}"
    if [[ ${#long[@]} -gt 0 ]]; then
        chosen=("${long[@]}")
        folder="$folder-long"
    fi
    echo "== $partition" >&2
    "$target/release/windlass" compare --modes sync,async,ssp:4,fedavg,fedbuff:2 --model 2nn --clients 100 \
        --partition "$partition" --target "${targets[$partition]}" --workers 2 --servers 1 \
        --out "runs/$folder" "${chosen[@]}" "$@"
done
