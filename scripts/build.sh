# Builds the programs in the optimised profile and says in $target where they are. To be sourced by the other scripts.
# shellcheck shell=bash

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

if ! command -v cargo >/dev/null; then
    echo "error: cargo is not installed; get Rust from https://rustup.rs, then open a new shell" >&2
    exit 6
fi

# The folder of the call stays what it is, so that paths in the flags and the directory runs/ mean what they say; only
# the data is looked for beside the sources where this folder has none.
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
