#!/usr/bin/env bash
# Reproduces the numbers in docs/performance.md: scripts/bench.sh [PART ...]; all but peers without arguments. Parts: wire bound scaling
# round stall checkpoints replicas sessions apply roofline codecs gradients links accuracy overlap peers. The part peers sets Windlass beside
# TensorFlow, which it installs into target/peers/venv; because of that download it is not part of all. Its flags:
# benches/peers/run.sh --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
all=(wire bound scaling round stall checkpoints replicas sessions apply roofline codecs gradients links accuracy overlap)
for part in "$@"; do
    case "$part" in
        -h | --help) sed -n '2,5s/^# //p' scripts/bench.sh; exit 0 ;;
        peers | all) ;;
        *) [[ " ${all[*]} " == *" $part "* ]] || {
            echo "error: unknown part $part; known are ${all[*]}, peers and all" >&2
            exit 2
        } ;;
    esac
done
target="${CARGO_TARGET_DIR:-target}/release"
cargo build --release --locked --workspace --bins
for part in "${@:-all}"; do
    case "$part" in
        wire) "$target/push-pull" ;;
        apply | codecs | gradients) cargo bench --locked -p windlass-benches --bench "$part" ;;
        peers) benches/peers/run.sh ;;
        all) scripts/bench.sh "${all[@]}" ;;
        *) "$target/$part" ;;
    esac
done
