#!/usr/bin/env bash
# Runs what every store of checkpoints must do against a real S3 service on this machine, in a temporary folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

command -v python3 >/dev/null || { echo "error: python3 with venv is missing: the service is the package moto[server]" >&2; exit 6; }
folder="$(mktemp -d)"
server=""
clean() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$folder"
}
trap clean EXIT

echo "== a service from PyPI: moto[server]"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'moto[server]'

# The service names its port once it has one.
"$folder/venv/bin/python" - >"$folder/port" 2>"$folder/log" <<'PYTHON' &
import sys, time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
while True:
    time.sleep(60)
PYTHON
server=$!
for _ in $(seq 300); do
    [ -s "$folder/port" ] && break
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
done
[ -s "$folder/port" ] || { echo "error: the service did not start within 30 s:" >&2; tail -n 20 "$folder/log" >&2; exit 6; }

export AWS_ENDPOINT="http://127.0.0.1:$(cat "$folder/port")"
export AWS_ALLOW_HTTP=true AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=tests AWS_SECRET_ACCESS_KEY=tests
"$folder/venv/bin/python" - <<'PYTHON'
import os, boto3
boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT"]).create_bucket(Bucket="windlass-tests")
PYTHON

echo "== the tests, against $AWS_ENDPOINT"
export WINDLASS_TEST_S3="s3://windlass-tests/checkpoints"
cargo test --locked -p windlass-checkpoint --features object-store --test checkpoint -- "$@"
echo "== all passed"
