#!/usr/bin/env bash
# Builds Windlass and trains with the flags given: scripts/train.sh --model cnn --passes 8
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/build.sh"
exec "$target/release/windlass" train "$@"
