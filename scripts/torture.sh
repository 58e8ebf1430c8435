#!/usr/bin/env bash
# Trains over bad networks, and with workers that are killed and stopped, by many seeded schedules, and says which failed:
# scripts/torture.sh [COUNT|FIRST..END] [relay|kills|virtual ...]; 50 schedules of each kind without arguments, which takes
# under an hour on two cores. Exit codes: 0 all passed, 1 some failed, 2 usage, 130 Ctrl-C.
set -euo pipefail

usage() { echo "error: $1; usage: scripts/torture.sh [COUNT|FIRST..END] [relay|kills|virtual ...]" >&2; exit 2; }

first=0 end=50
if [[ "${1:-}" =~ ^([0-9]+)\.\.([0-9]+)$ ]]; then
    first="${BASH_REMATCH[1]}" end="${BASH_REMATCH[2]}"
    shift
elif [[ "${1:-}" =~ ^[0-9]+$ ]]; then
    end="$1"
    shift
fi
((first < end)) || usage "there is no schedule from $first to before $end"
kinds=("${@:-all}")
[[ "${kinds[*]}" == all ]] && kinds=(virtual kills relay)
for kind in "${kinds[@]}"; do
    [[ "$kind" =~ ^(relay|kills|virtual)$ ]] || usage "unknown kind $kind"
done

source "$(dirname "${BASH_SOURCE[0]}")/build.sh"
export CARGO_TARGET_DIR="$target"
logs="$(mktemp -d "${TMPDIR:-/tmp}/windlass-torture.XXXXXX")"
mkdir "$logs/runs"

# Each test is a process group of its own, with all that it starts, and ends as a whole: also workers that are stopped.
set -m
running=
clean() {
    if [[ -n "$running" ]]; then
        kill -KILL -- "-$running" 2>/dev/null || true
        wait "$running" 2>/dev/null || true
        running=
    fi
    rm -rf "$logs/runs"
    rmdir "$logs" 2>/dev/null || echo "what the tests said is in $logs" >&2
}
trap clean EXIT
trap 'exit 130' INT TERM HUP

test_of() {
    local manifest=(--manifest-path "$root/Cargo.toml" --release --locked --quiet)
    case "$1" in
        virtual) cargo test "${manifest[@]}" -p windlass-transport --test virtual_time -- --nocapture ;;
        kills) cargo test "${manifest[@]}" -p windlass-process-tests --test torture -- --nocapture ;;
        relay) cargo test "${manifest[@]}" -p windlass-process-tests --test relay -- --nocapture --ignored ;;
    esac
}

failed=()
for kind in "${kinds[@]}"; do
    for ((seed = first; seed < end; seed++)); do
        log="$logs/$kind-$seed.log" began=$SECONDS
        TMPDIR="$logs/runs" WINDLASS_TORTURE="$seed..$((seed + 1))" test_of "$kind" >"$log" 2>&1 </dev/null &
        running=$!
        if wait "$running"; then
            verdict=passed
            rm "$log"
        else
            verdict="FAILED, see $log"
            failed+=("$kind $seed")
        fi
        running=
        echo "$kind, seed $seed, $((seed - first + 1)) of $((end - first)): $verdict ($((SECONDS - began)) s)"
    done
done
if ((${#failed[@]} > 0)); then
    printf 'error: %s of the schedules failed; repeat one alone with\n' "${#failed[@]}" >&2
    for each in "${failed[@]}"; do
        echo "  scripts/torture.sh ${each##* }..$((${each##* } + 1)) ${each%% *}" >&2
    done
    exit 1
fi
echo "all passed"
