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

# What is optimised is always built for these packages: for others, dependencies would have other features, and with
# them most would be built again.
shells=(-p windlass-transport -p windlass-process -p windlass-ps -p windlass-worker -p windlass-cli)
release=(--config tests/process/lines.toml --release --locked)
optimised=("${release[@]}" "${shells[@]}" -p windlass-process-tests)

# Without these it takes a fifth of the time to build, and tests neither measure nor are looked into with a debugger.
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_DEBUG=false

# What test programs say until they are done.
said="$(mktemp -d "${TMPDIR:-/tmp}/windlass-test.XXXXXX")"
trap 'rm -rf "$said"' EXIT
trap 'exit 130' INT TERM HUP

# Runs these test programs three at a time, since most of what they do is wait, and prints what each says in one piece.
side_by_side() {
    # shellcheck disable=SC2016
    printf '%s\0' "$@" | xargs -0 -P 3 -I NAME bash -c '
        said="$1/$2"
        shift 2
        "$@" >"$said" 2>&1 && code=0 || code=1
        cat "$said"
        exit "$code"' bash "$said" NAME cargo test "${optimised[@]}" --test NAME || {
        echo "error: not all of these tests passed: $*" >&2
        exit 101
    }
}
# Of those with real processes, these measure how long workers wait or in which turn they push.
alone=(emulation staleness)
# The longest first.
together=(elastic survive left_out torture replicas overlap federated codecs compare breaks)
for file in tests/process/tests/*.rs; do
    name="$(basename "$file" .rs)"
    [[ " ${together[*]} ${alone[*]} " == *" $name "* ]] || together+=("$name")
done

say "formatting"
cargo fmt --all --check
say "programs and examples, optimised"
cargo build "${optimised[@]}" --bins --examples
say "lints"
# The optimised profile throughout, so that what others wrote is built once.
cargo clippy --release --locked --workspace --all-targets -- -D warnings
say "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --workspace --no-deps
say "cores, simulated cluster and mutations, with every assertion"
cargo test --profile simulation --locked -p windlass-common -p windlass-checkpoint -p windlass-ps-core -p windlass-worker-core \
    -p windlass-report -p windlass-tests
say "simulated clusters with faults: 10,000 seeds"
"${CARGO_TARGET_DIR:-target}/simulation/hunt" --seeds 0..10000
say "simulated clusters of 1,000 workers on 64 shards"
cargo test "${optimised[@]}" -p windlass-tests --test scale
say "transport, servers, workers and command line"
cargo test "${optimised[@]}" --lib --bins
cargo test "${release[@]}" "${shells[@]}" --test '*'
cargo test "${optimised[@]}" --doc
say "real processes, three tests at a time"
side_by_side "${together[@]}"
say "real processes whose waiting is measured"
cargo test "${optimised[@]}" "${alone[@]/#/--test=}"
say "all passed"
