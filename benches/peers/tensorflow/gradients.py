#!/usr/bin/env python3
"""One gradient of each model in TensorFlow on one thread: prints milliseconds of wall clock and of processor time."""

import argparse
import json
import os
import sys
import time

# Gradients in one call, so that calling from Python, about 0.1 ms, does not count where it would matter.
PER_CALL = {"2nn": 20, "cnn": 1}


def measure(call, count, seconds):
    """Medians of the wall clock and the processor time of a call, in milliseconds, divided by `count`."""
    for _ in range(5):
        call()
    wall, processor, end = [], [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(wall) < 10:
        before, used = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - before)
        processor.append(time.process_time() - used)
    return [sorted(each)[len(each) // 2] * 1e3 / count for each in (wall, processor)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=PER_CALL, action="append", help="model [default: both]")
    parser.add_argument("--batch", type=int, default=64, help="examples [default: 64]")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each is measured [default: 3]")
    flags = parser.parse_args()
    if flags.batch < 1:
        parser.error(f"--batch is {flags.batch}, but at least 1 is needed")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    import models

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    labels = tf.range(flags.batch) % 10
    for model in flags.model or PER_CALL:
        count = PER_CALL[model]
        features = tf.random.uniform([count, flags.batch, 784])
        variables = [tf.Variable(value) for value in models.initial(model)]
        for compiler in ["graph", "xla"]:

            @tf.function(autograph=False, jit_compile=compiler == "xla")
            def some(features):
                results = []
                for index in range(count):
                    values = [variable.read_value() for variable in variables]
                    results += models.gradient(model, values, features[index], labels)
                return results

            wall, processor = measure(lambda: some(features)[-1].numpy(), count, flags.seconds)
            row = {"model": model, "batch": flags.batch, "compiler": compiler}
            print(json.dumps(row | {"wall_ms": wall, "processor_ms": processor}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
