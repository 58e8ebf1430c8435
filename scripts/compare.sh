#!/usr/bin/env bash
# Builds Windlass and compares its modes on MNIST, dealt evenly (iid) and by class (shards:2), in under ten minutes on two
# cores, with rates that were chosen before. scripts/compare.sh --long lets each mode choose its rate anew and runs three
# seeds, which takes about half an hour. Further flags go to windlass compare.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

if ! command -v cargo >/dev/null; then
    echo "error: cargo is not installed; get Rust from https://rustup.rs, then open a new shell" >&2
    exit 6
fi
if [[ -z "${WINDLASS_DATA:-}" && ! -e data/mnist ]]; then
    export WINDLASS_DATA="$root/data/mnist"
fi
target="${CARGO_TARGET_DIR:-$root/target}"
case "$target" in
    /*) ;;
    *) target="$PWD/$target" ;;
esac
cargo build --manifest-path "$root/Cargo.toml" --target-dir "$target" --release --locked \
    -p windlass-cli -p windlass-ps -p windlass-worker

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
