#!/usr/bin/env bash
# Sets Windlass beside TensorFlow's ParameterServerStrategy: benches/peers/run.sh [--venv DIR] [--python PROGRAM]
# [trainings|gradients|all] [flags of compare.py; --help names them]. TensorFlow (1.6 GB) goes into a virtual environment,
# target/peers/venv unless another one is named.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
venv="${CARGO_TARGET_DIR:-$here/../../target}/peers/venv"
python=python3
rest=()
while (($# > 0)); do
    case "$1" in
        --venv | --python)
            (($# > 1)) || { echo "error: $1 needs a value" >&2; exit 2; }
            [[ "$1" == --venv ]] && venv="$2" || python="$2"
            shift 2
            ;;
        -h | --help) sed -n '2,4s/^# //p' "${BASH_SOURCE[0]}"; echo; exec python3 "$here/compare.py" --help ;;
        *) rest+=("$1"); shift ;;
    esac
done
if ! cmp -s "$here/tensorflow/requirements.txt" "$venv/installed"; then
    "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || {
        echo "error: TensorFlow has packages for Python 3.10 to 3.13; name such a one with --python" >&2
        exit 6
    }
    "$python" -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/tensorflow/requirements.txt"
    cp "$here/tensorflow/requirements.txt" "$venv/installed"
fi
exec "$venv/bin/python" "$here/compare.py" ${rest[@]+"${rest[@]}"}
