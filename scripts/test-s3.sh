#!/usr/bin/env bash
# Runs what every store of checkpoints must do against a real S3 service on this machine, in a temporary folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

command -v python3 >/dev/null || { echo "error: python3 with venv is missing: the service is the package moto[server]" >&2; exit 6; }
folder="$(mktemp -d)"
server=""
training=""
clean() {
    for process in $training $server; do
        kill "$process" 2>/dev/null || true
        wait "$process" 2>/dev/null || true
    done
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
# Makes a bucket, or takes it away with all that is in it.
bucket() {
    "$folder/venv/bin/python" - "$@" <<'PYTHON'
import os, sys, boto3
does, name = sys.argv[1:]
bucket = boto3.resource("s3", endpoint_url=os.environ["AWS_ENDPOINT"]).Bucket(name)
if does == "make":
    bucket.create()
else:
    bucket.objects.all().delete()
    bucket.delete()
PYTHON
}
bucket make windlass-tests

echo "== the tests, against $AWS_ENDPOINT"
export WINDLASS_TEST_S3="s3://windlass-tests/checkpoints"
cargo test --locked -p windlass-checkpoint --features object-store --test checkpoint -- "$@"

echo "== a training whose bucket vanishes goes on, and keeps its checkpoints when it is there again"
cargo build --release --locked --bins -p windlass-cli -p windlass-ps -p windlass-worker --features windlass-cli/object-store,windlass-ps/object-store
windlass="${CARGO_TARGET_DIR:-target}/release/windlass"
fail() {
    echo "error: $*" >&2
    tail -n 20 "$folder/training" >&2
    exit 1
}
# Waits until the log of the run has more than so many lines of an event.
until_more() {
    for _ in $(seq 600); do
        [ "$(events "$1")" -gt "$2" ] && return
        kill -0 "$training" 2>/dev/null || fail "the training has ended before there were more than $2 of '$1'"
        sleep 0.1
    done
    fail "no more than $2 of '$1' within 60 s"
}
events() { grep -sc "\"event\":\"$1\"" "$folder/run/events.jsonl" || [ -e "$folder/run/events.jsonl" ] || echo 0; }

bucket make windlass-training
"$windlass" train --quiet --mode sync --model 2nn --servers 2 --workers 2 --passes 60 --run-dir "$folder/run" \
    --checkpoint-every 1s --checkpoints s3://windlass-training/run >"$folder/training" 2>&1 &
training=$!
until_more checkpoint 1
bucket remove windlass-training
until_more "no checkpoint" "$(events "no checkpoint")"
until_more applied "$(events applied)"
"$windlass" checkpoint now "$folder/run" >"$folder/said" 2>&1 && fail "a checkpoint is said to be kept in no bucket"
grep -q windlass-training "$folder/said" || fail "it is not said which bucket is missing: $(cat "$folder/said")"
cat "$folder/said"
bucket make windlass-training
"$windlass" checkpoint now "$folder/run"
"$windlass" checkpoint verify s3://windlass-training/run
kill -TERM "$training"
wait "$training" || true
training=""
"$windlass" checkpoint list s3://windlass-training/run
echo "== all passed"
