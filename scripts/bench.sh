#!/usr/bin/env bash
# Reproduces the numbers in docs/performance.md: scripts/bench.sh [wire|bound|round|stall|checkpoints|replicas|apply|roofline|gradients ...]; all without arguments.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
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
        roofline) "$target/roofline" ;;
        gradients) cargo bench --locked -p windlass-benches --bench gradients ;;
        all) "$0" wire bound round stall checkpoints replicas apply roofline gradients ;;
        *) echo "error: unknown part $part; known are wire, bound, round, stall, checkpoints, replicas, apply, roofline and gradients" >&2; exit 2 ;;
    esac
done
