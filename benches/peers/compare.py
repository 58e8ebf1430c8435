#!/usr/bin/env python3
"""Windlass beside TensorFlow's ParameterServerStrategy on this machine: 2NN, MNIST, asynchronous SGD, one parameter
server, processes on 127.0.0.1. Runs both in turn and prints each pair, then medians with smallest and largest.

To be run by run.sh, with the Python that has TensorFlow.
"""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TENSORFLOW = Path(__file__).resolve().parent / "tensorflow"
EXAMPLES = 60_000
END_WITHIN_S = 15


class Failure(Exception):
    """What a person needs to know of a program that did not do its work."""


def terminated(*_):
    """A request to end is treated as Ctrl-C is."""
    raise KeyboardInterrupt


def parse():
    """The flags, checked."""
    parser = argparse.ArgumentParser(
        prog="run.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", choices=["trainings", "gradients", "all"], default="all", help="""trainings:
        whole trainings in pairs; gradients: one gradient on one thread [default: all]""")
    parser.add_argument("--pairs", type=int, default=5, help="how often both are measured [default: 5]")
    parser.add_argument("--passes", type=float, default=4.0, help="passes over the data in a training [default: 4]")
    parser.add_argument("--batch", type=int, default=64, help="examples per step [default: 64]")
    parser.add_argument("--workers", type=int, default=2, help="worker processes [default: 2]")
    parser.add_argument("--rate", type=float, default=0.1, help="learning rate [default: 0.1]")
    parser.add_argument("--data", type=Path, default=REPOSITORY / "data/mnist", help="folder of four IDX files")
    parser.add_argument("--windlass", type=Path, help="""the program, with windlass-ps, windlass-worker and bound beside
        it [default: target/release/windlass]""")
    parser.add_argument("--windlass-flags", default="", help="""more flags of windlass train, as one text;
        with = before it where it is a single flag: --windlass-flags='--shards-per-server 2'""")
    parser.add_argument("--tensorflow-flags", default="", help="""more flags of tensorflow/train.py,
        in the same way: --tensorflow-flags=--one-variable""")
    parser.add_argument("--deadline", type=float, default=600, help="seconds that one training may take [default: 600]")
    flags = parser.parse_args()
    if flags.windlass is None:
        flags.windlass = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")) / "release/windlass"
    flags.data, flags.windlass = flags.data.absolute(), flags.windlass.absolute()
    for name in ["pairs", "batch", "workers"]:
        if getattr(flags, name) < 1:
            parser.error(f"--{name} is {getattr(flags, name)}, but at least 1 is needed")
    for name in ["passes", "rate", "deadline"]:
        if not 0 < getattr(flags, name) < float("inf"):
            parser.error(f"--{name} is {getattr(flags, name)}, but a number above 0 is needed")
    if not flags.data.is_dir():
        parser.error(f"--data {flags.data} is no folder")
    needed = [flags.windlass] if flags.part == "trainings" else [flags.windlass, flags.windlass.with_name("bound")]
    for program in needed:
        if not os.access(program, os.X_OK) or not program.is_file():
            parser.error(f"there is no program {program}; build it with cargo build --release --workspace --bins")
    for name in ["windlass_flags", "tensorflow_flags"]:
        try:
            setattr(flags, name, shlex.split(getattr(flags, name)))
        except ValueError as error:
            parser.error(f"--{name.replace('_', '-')}: {error}")
    return flags


def processor_ticks():
    """Time of the machine so far, and what of it the hypervisor gave to others, in clock ticks."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(ticks), ticks[7]


def stolen_share(since):
    """The share of the machine's time that was stolen since an earlier reading."""
    total, stolen = (now - before for now, before in zip(processor_ticks(), since))
    return stolen / max(total, 1)


def run(command, deadline, folder):
    """What a program prints, and when it was started. It is ended, with all it started, if this program is."""
    log = Path(folder) / "log"
    with log.open("wb") as errors:
        started = time.time()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True)
        try:
            output, _ = process.communicate(timeout=deadline)
        except subprocess.TimeoutExpired:
            raise Failure(f"{shlex.join(command)} was not done after {deadline:.0f} s (--deadline)") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.communicate(timeout=END_WITHIN_S)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
    if process.returncode != 0:
        said = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise Failure(f"{shlex.join(command)} ended with {process.returncode}:\n{said}")
    return output, started


def tensorflow(flags):
    """One training with TensorFlow: steps/s, seconds to the first step, core-ms per step, accuracy."""
    with tempfile.TemporaryDirectory(prefix="windlass-peers.") as folder:
        command = [sys.executable, str(TENSORFLOW / "train.py"), "--data", str(flags.data), "--logs", folder]
        command += ["--workers", str(flags.workers), "--batch", str(flags.batch), "--rate", str(flags.rate)]
        command += ["--steps", str(round(flags.passes * EXAMPLES / flags.batch)), *flags.tensorflow_flags]
        output, started = run(command, flags.deadline, folder)
    result = json.loads(output.splitlines()[-1])
    first = result["first_step_at"] - started
    return result["steps_per_s"], first, result["core_ms_per_step"], result["accuracy"]


def windlass(flags):
    """One training with Windlass: steps/s, seconds to the first step, core-ms per step, accuracy.

    Its processor time is that of the whole run, beginning and evaluation included.
    """
    with tempfile.TemporaryDirectory(prefix="windlass-peers.") as folder:
        run_dir = Path(folder) / "run"
        command = [str(flags.windlass), "train", "--quiet", "--mode", "async", "--model", "2nn", "--servers", "1"]
        command += ["--workers", str(flags.workers), "--batch", str(flags.batch), "--passes", str(flags.passes)]
        command += ["--rate", str(flags.rate), "--schedule", "constant", "--warm-up", "0"]
        command += ["--evaluate-every", "1000000000", "--data", str(flags.data), "--run-dir", str(run_dir)]
        before = os.times()
        run(command + flags.windlass_flags, flags.deadline, folder)
        after = os.times()
        summary = json.loads((run_dir / "summary.json").read_text())
    used = after.children_user + after.children_system - before.children_user - before.children_system
    figures = summary["steps_per_s"], summary["launch_to_first_step_s"]
    return *figures, used * 1e3 / summary["steps"], summary["test_accuracy"]


def spread(values, digits):
    """The median, with smallest and largest."""
    ordered = sorted(values)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return f"{middle:.{digits}f} ({ordered[0]:.{digits}f} to {ordered[-1]:.{digits}f})"


def table(rows):
    """Prints lines of cells as a table."""
    for index, row in enumerate(rows):
        print("| " + " | ".join(row) + " |")
        if index == 0:
            print("|" + "---|" * len(row))


def trainings(flags):
    """Pairs of whole trainings, in turn."""
    pairs, begin = [], processor_ticks()
    for index in range(flags.pairs):
        before = processor_ticks()
        peer, own = tensorflow(flags), windlass(flags)
        pairs.append((peer, own))
        print(
            f"pair {index}: TensorFlow {peer[0]:.0f} steps/s, windlass {own[0]:.0f}, ratio {own[0] / peer[0]:.2f}; first "
            f"step after {peer[1]:.1f} s and {own[1]:.2f} s; stolen {stolen_share(before):.1%}, "
            f"load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    print(
        f"\n2NN batch {flags.batch}, async, 1 server, {flags.workers} workers, {os.cpu_count()} cores, "
        f"{flags.pairs} pairs; more flags of TensorFlow: {shlex.join(flags.tensorflow_flags) or 'none'}; of windlass: "
        f"{shlex.join(flags.windlass_flags) or 'none'}\n"
    )
    rows = [["", "TensorFlow", "windlass", "ratio of each pair"]]
    kinds = [("steps/s", 0, 0), ("launch to the first step, s", 1, 2), ("core-ms a step", 2, 2)]
    for name, column, digits in kinds:
        peers, owns = ([side[column] for side in sides] for sides in zip(*pairs))
        ratios = [own / peer for own, peer in zip(owns, peers)]
        rows.append([name, spread(peers, digits), spread(owns, digits), spread(ratios, 3)])
    accuracies = [[side[3] * 100 for side in sides] for sides in zip(*pairs)]
    rows.append(["test accuracy, %", *(spread(each, 2) for each in accuracies), ""])
    table(rows)
    print(f"\nstolen time {stolen_share(begin):.1%}, load {os.getloadavg()[0]:.1f}\n")


def own_gradient(flags, model):
    """Processor milliseconds of one gradient in Windlass, which `bound` calls c; its training is as short as may be."""
    command = [str(flags.windlass.with_name("bound")), "--model", model, "--batch", str(flags.batch), "--rounds", "1"]
    command += ["--passes", "0.02", "--data", str(flags.data), "--windlass", str(flags.windlass)]
    with tempfile.TemporaryDirectory(prefix="windlass-peers.") as folder:
        output, _ = run(command, flags.deadline, folder)
    found = re.search(r"\bc ([0-9.]+) ms", output)
    if found is None:
        raise Failure(f"{shlex.join(command)} printed no c:\n{output}")
    return float(found.group(1))


def peer_gradients(flags):
    """Processor milliseconds of one gradient in TensorFlow, by model and compiler."""
    command = [sys.executable, str(TENSORFLOW / "gradients.py"), "--batch", str(flags.batch)]
    with tempfile.TemporaryDirectory(prefix="windlass-peers.") as folder:
        output, _ = run(command, flags.deadline, folder)
    lines = [json.loads(line) for line in output.splitlines()]
    return {(line["model"], line["compiler"]): line["processor_ms"] for line in lines}


def gradients(flags):
    """One gradient on one thread, both in turn."""
    begin, columns = processor_ticks(), {}
    for index in range(flags.pairs):
        for key, value in peer_gradients(flags).items():
            columns.setdefault(key, []).append(value)
        for model in ["2nn", "cnn"]:
            columns.setdefault((model, "windlass"), []).append(own_gradient(flags, model))
        newest = ", ".join(f"{model} {kind} {column[-1]:.2f} ms" for (model, kind), column in columns.items())
        print(f"round {index}: {newest}; load {os.getloadavg()[0]:.1f}", flush=True)
    print(f"\none gradient of batch {flags.batch} on one thread, ms of processor time, {flags.pairs} rounds\n")
    rows = [["", "TensorFlow", "TensorFlow with XLA", "windlass", "windlass / the faster"]]
    for model in ["2nn", "cnn"]:
        sides = [columns[model, kind] for kind in ("graph", "xla", "windlass")]
        ratios = [own / min(graph, xla) for graph, xla, own in zip(*sides)]
        rows.append([model, *(spread(side, 2) for side in sides), spread(ratios, 2)])
    table(rows)
    print(f"\nstolen time {stolen_share(begin):.1%}, load {os.getloadavg()[0]:.1f}")


def main():
    flags = parse()
    signal.signal(signal.SIGTERM, terminated)
    print(f"load at the beginning {os.getloadavg()[0]:.1f}", flush=True)
    try:
        if flags.part != "gradients":
            trainings(flags)
        if flags.part != "trainings":
            gradients(flags)
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
