#!/usr/bin/env bash
# Reproduces the numbers in docs/performance.md: scripts/bench.sh [wire|bound|round|stall|checkpoints|replicas|apply|gradients|peers ...];
# all but peers without arguments. The part peers sets Windlass beside TensorFlow, which it installs into target/peers/venv;
# because of that download it is not part of all. Its flags: benches/peers/run.sh --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for part in "$@"; do
    case "$part" in
        -h | --help) sed -n '2,4s/^# //p' scripts/bench.sh; exit 0 ;;
        wire | bound | round | stall | checkpoints | replicas | apply | gradients | peers | all) ;;
        *) echo "error: unknown part $part; known are wire, bound, round, stall, checkpoints, replicas, apply, gradients, peers and all" >&2; exit 2 ;;
    esac
done
target="${CARGO_TARGET_DIR:-target}/release"
cargo build --release --locked --workspace --bins
for part in "${@:-all}"; do
    case "$part" in
        wire) "$target/push-pull" ;;
        bound) "$target/bound" ;;
        round) "$target/round" ;;
        stall) "$target/stall" ;;
        checkpoints) "$target/checkpoints" ;;
        replicas) "$target/replicas" ;;
        apply) cargo bench --locked -p windlass-benches --bench apply ;;
        gradients) cargo bench --locked -p windlass-benches --bench gradients ;;
        peers) benches/peers/run.sh ;;
        all) scripts/bench.sh wire bound round stall checkpoints replicas apply gradients ;;
    esac
done
