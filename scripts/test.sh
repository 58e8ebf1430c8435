#!/usr/bin/env bash
# Checks and tests everything. Installs what the tests need and is missing, where it may.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; }

install() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -q && apt-get install -q -y "$@"
    else
        echo "error: please install: $*" >&2
        exit 6
    fi
}

command -v cargo >/dev/null || { echo "error: Rust is missing: see https://rustup.rs" >&2; exit 6; }
command -v cc >/dev/null || install gcc libc6-dev
command -v git >/dev/null || install git
for part in fmt clippy; do
    cargo "$part" --version >/dev/null 2>&1 || { echo "error: run rustup component add rustfmt clippy" >&2; exit 6; }
done

say "formatting"
cargo fmt --all --check
say "programs and examples, optimised"
cargo build --release --locked --workspace --bins --examples
say "lints"
# The optimised profile throughout, so that what others wrote is built once.
cargo clippy --release --locked --workspace --all-targets -- -D warnings
say "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --workspace --no-deps
say "cores, simulated cluster and mutations, with every assertion"
cargo test --profile simulation --locked -p windlass-common -p windlass-checkpoint -p windlass-ps-core -p windlass-worker-core \
    -p windlass-report -p windlass-tests
say "simulated clusters with faults: 10,000 seeds"
cargo run --profile simulation --locked -p windlass-tests --bin hunt -- --seeds 0..10000
say "simulated clusters of 1,000 workers on 64 shards"
cargo test --release --locked -p windlass-tests --test scale
say "transport, servers, workers, command line and real processes"
cargo test --release --locked -p windlass-transport -p windlass-process -p windlass-ps -p windlass-worker \
    -p windlass-cli -p windlass-process-tests
say "all passed"
