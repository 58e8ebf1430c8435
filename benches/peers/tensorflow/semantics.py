#!/usr/bin/env python3
"""Shows that several steps in one call are steps indeed: one worker's are compared with sequential SGD, bit for bit, and
the bytes that travel over the loopback interface with one pull and one push of the model for each step."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from cluster import Cluster

BATCH, RATE, CALLS = 64, 0.1, 10


def loopback_bytes():
    """Bytes that the loopback interface has carried so far, of everybody's."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split(":")[1].split()[0]) for line in lines if line.strip().startswith("lo:"))


def check(cluster, steps, one_variable):
    """The largest difference from sequential SGD after one call, and bytes a step of further calls."""
    import tensorflow as tf

    import models

    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster.spec), task_type="chief", task_id=0, rpc_layer="grpc"
    )
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    values = models.initial("2nn")
    expected = [models.flat(values)] if one_variable else values
    with strategy.scope():
        variables = [tf.Variable(value) for value in expected]
    features = tf.random.uniform([steps, BATCH, 784]).numpy()
    labels = tf.random.uniform([steps, BATCH], maxval=10, dtype=tf.int32).numpy()

    @tf.function(autograph=False)
    def some():
        for index in range(steps):
            models.step("2nn", variables, features[index], labels[index], RATE)

    coordinator.schedule(some)
    coordinator.join()
    for index in range(steps):
        gradient = models.gradient("2nn", expected, features[index], labels[index])
        expected = [value - RATE * delta for value, delta in zip(expected, gradient)]
    pairs = zip(variables, expected)
    difference = max(float(tf.reduce_max(tf.abs(v.read_value() - e))) for v, e in pairs)
    before = loopback_bytes()
    for _ in range(CALLS):
        coordinator.schedule(some)
    coordinator.join()
    return difference, (loopback_bytes() - before) / (CALLS * steps)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps-per-call", type=int, default=30, help="steps in a call [default: 30]")
    parser.add_argument("--one-variable", action="store_true", help="keep the model in one flat variable")
    flags = parser.parse_args()
    if flags.steps_per_call < 1:
        parser.error(f"--steps-per-call is {flags.steps_per_call}, but at least 1 is needed")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    status = 1
    with tempfile.TemporaryDirectory(prefix="tensorflow-peer.") as logs:
        cluster = Cluster(1, 0, logs)
        try:
            difference, traffic = check(cluster, flags.steps_per_call, flags.one_variable)
            print(f"largest difference from sequential SGD: {difference}")
            print(f"bytes a step: {traffic:.0f}; two payloads are {2 * 4 * 199_210}")
            status = int(difference > 1e-6 or traffic < 2 * 4 * 199_210)
        except KeyboardInterrupt:
            status = 130
        finally:
            cluster.end()
    # At an orderly end TensorFlow would try to reach the processes that are gone.
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
