#!/usr/bin/env python3
"""Asynchronous SGD on 2NN and MNIST with TensorFlow's ParameterServerStrategy: this process is the coordinator, one
parameter server and the workers are processes that it starts. The last line printed is JSON:

steps_per_s: steps applied per second after the warm-up; core_ms_per_step: processor time of all processes, of the same
steps; first_step_at: time at which the first step was known to be applied, seconds of the Unix clock; accuracy: share
of the test images that the trained model gets right.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from cluster import Cluster

FILES = [f"{part}-{name}-ubyte.gz" for part in ("train", "t10k") for name in ("images-idx3", "labels-idx1")]


def parse():
    """The flags, checked."""
    repository = Path(__file__).resolve().parents[3]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=repository / "data/mnist", help="folder of four IDX files")
    parser.add_argument("--workers", type=int, default=2, help="worker processes [default: 2]")
    parser.add_argument("--batch", type=int, default=64, help="examples per step [default: 64]")
    parser.add_argument("--steps", type=int, default=3750, help="steps that are measured [default: 3750]")
    parser.add_argument("--warm-up", type=int, default=200, help="steps before these [default: 200]")
    parser.add_argument("--rate", type=float, default=0.1, help="learning rate [default: 0.1]")
    parser.add_argument("--steps-per-call", type=int, default=30, help="""steps that a worker makes, one after the
        other, in one function that the coordinator sends it; each pulls and pushes by itself [default: 30]""")
    parser.add_argument("--one-variable", action="store_true", help="keep the model in one flat variable, not in six")
    parser.add_argument("--threads", type=int, default=0, help="""threads of each process within an operation, and as
        many between operations [default: TensorFlow's choice, the cores]""")
    parser.add_argument("--loop", choices=["custom", "fit"], default="custom", help="""custom training loop with
        ClusterCoordinator, or Model.fit of Keras 2 [default: custom]""")
    parser.add_argument("--logs", type=Path, help="existing folder for what the processes say [default: a new one]")
    flags = parser.parse_args()
    least_values = {"workers": 1, "batch": 1, "steps": 1, "warm_up": 0, "steps_per_call": 1, "threads": 0}
    for name, least in least_values.items():
        if (value := getattr(flags, name)) < least:
            parser.error(f"--{name.replace('_', '-')} is {value}, but at least {least} is needed")
    if flags.batch > 60_000:
        parser.error(f"--batch is {flags.batch}, but there are only 60000 examples")
    if flags.loop == "fit" and flags.one_variable:
        parser.error("--one-variable goes with --loop custom only: Keras keeps each layer's variables apart")
    for name in FILES:
        if not (flags.data / name).is_file():
            parser.error(f"--data {flags.data}: the file {name} is missing")
    if flags.logs and not flags.logs.is_dir():
        parser.error(f"--logs {flags.logs} is no folder")
    return flags


def processor_seconds(pids):
    """Processor time that these processes have used so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class Meter:
    """Measures from `begin` to `end`."""

    def __init__(self, pids):
        self.pids = [os.getpid(), *pids]
        self.first_step_at = None

    def begin(self):
        self.began, self.used = time.perf_counter(), processor_seconds(self.pids)

    def end(self, steps):
        seconds = time.perf_counter() - self.began
        core_ms = (processor_seconds(self.pids) - self.used) * 1e3 / steps
        self.result = {"steps_per_s": steps / seconds, "core_ms_per_step": core_ms}


def rounded_up(steps, per_call):
    """How many calls of so many steps make at least these steps."""
    return -(-steps // per_call)


def custom(flags, strategy, meter):
    """Trains with a loop of our own; gives the test accuracy."""
    import tensorflow as tf

    import data
    import models

    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    with strategy.scope():
        values = models.initial("2nn")
        variables = [tf.Variable(v) for v in ([models.flat(values)] if flags.one_variable else values)]

    # Written out rather than as tf.while_loop, whose turns the parameter server would have to follow.
    @tf.function(autograph=False)
    def some(iterator):
        features, labels = next(iterator)
        for index in range(flags.steps_per_call):
            models.step("2nn", variables, features[index], labels[index], flags.rate)

    def dataset():
        return data.batches(flags.data, flags.batch).batch(flags.steps_per_call, drop_remainder=True).prefetch(1)

    iterator = iter(coordinator.create_per_worker_dataset(dataset))

    def run(calls):
        for _ in range(calls):
            coordinator.schedule(some, args=(iterator,))
        coordinator.join()

    run(1)
    meter.first_step_at = time.time()
    run(rounded_up(flags.warm_up, flags.steps_per_call))
    calls = rounded_up(flags.steps, flags.steps_per_call)
    meter.begin()
    run(calls)
    meter.end(calls * flags.steps_per_call)

    values = [variable.read_value() for variable in variables]
    images, labels = data.load(flags.data, "t10k")
    outputs = models.logits("2nn", models.unflat("2nn", values[0]) if flags.one_variable else values, images)
    return float(tf.reduce_mean(tf.cast(tf.argmax(outputs, 1, tf.int32) == labels, tf.float32)))


def fit(flags, strategy, meter):
    """Trains with Model.fit; gives the test accuracy. Keras 3 does not know this strategy, so that it takes Keras 2."""
    import tf_keras as keras

    import data

    with strategy.scope():
        layers = [keras.layers.Dense(size, activation="relu") for size in (200, 200)]
        model = keras.Sequential([keras.Input((784,)), *layers, keras.layers.Dense(10)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        optimizer = keras.optimizers.SGD(flags.rate)
        model.compile(optimizer, loss, steps_per_execution=flags.steps_per_call)
    dataset = keras.utils.experimental.DatasetCreator(lambda _: data.batches(flags.data, flags.batch))

    # One call of fit opens the data once; epochs of one length are its only points to measure at, so that the warm-up is
    # as many of them as have its steps.
    steps = rounded_up(flags.steps, flags.steps_per_call) * flags.steps_per_call
    warm_up = rounded_up(max(flags.warm_up, 1), steps)

    class Epochs(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == warm_up:
                meter.begin()

        def on_epoch_end(self, epoch, logs=None):
            if epoch == warm_up:
                meter.end(steps)

    model.fit(dataset, epochs=1, steps_per_epoch=flags.steps_per_call, verbose=0)
    meter.first_step_at = time.time()
    model.fit(dataset, epochs=warm_up + 1, steps_per_epoch=steps, verbose=0, callbacks=[Epochs()])
    images, labels = data.load(flags.data, "t10k")
    weights = [variable.numpy() for variable in model.trainable_variables]
    import models

    outputs = models.logits("2nn", weights, images).numpy()
    return float((outputs.argmax(1) == labels.numpy()).mean())


def train(flags, cluster):
    """A whole training on this cluster; gives what is printed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["GRPC_FAIL_FAST"] = "use_caller"
    import tensorflow as tf

    if flags.threads:
        tf.config.threading.set_intra_op_parallelism_threads(flags.threads)
        tf.config.threading.set_inter_op_parallelism_threads(flags.threads)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster.spec), task_type="chief", task_id=0, rpc_layer="grpc"
    )
    strategy = tf.distribute.ParameterServerStrategy(resolver, variable_partitioner=None)
    meter = Meter(cluster.pids())
    accuracy = {"custom": custom, "fit": fit}[flags.loop](flags, strategy, meter)
    result = {"tensorflow": tf.__version__, "first_step_at": meter.first_step_at, "accuracy": accuracy}
    return meter.result | result


def main():
    flags = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    logs = flags.logs or tempfile.mkdtemp(prefix="tensorflow-peer.")
    cluster = Cluster(flags.workers, flags.threads, logs)
    status = 1
    try:
        print(json.dumps(train(flags, cluster)), flush=True)
        status = 0
    except KeyboardInterrupt:
        status = 130
    except SystemExit as end:
        status = end.code
    except Exception as error:
        print(f"error: TensorFlow failed: {error}\nWhat its processes said is in {logs}", file=sys.stderr)
    finally:
        cluster.end()
    if status == 0 and flags.logs is None:
        shutil.rmtree(logs, ignore_errors=True)
    # At an orderly end TensorFlow would try to reach the processes that are gone.
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
