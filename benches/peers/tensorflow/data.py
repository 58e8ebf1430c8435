"""Reads MNIST (IDX, gzip) and deals batches of it, by operations that run on the worker itself."""

from pathlib import Path

import tensorflow as tf

FEATURES, CLASSES = 784, 10
EXAMPLES = 60_000


def load(folder, part):
    """Images as floats from 0 to 1, one per row, and labels; `part` is train or t10k."""

    def values(name, header):
        packed = tf.io.read_file(str(Path(folder) / f"{part}-{name}-ubyte.gz"))
        plain = tf.io.decode_compressed(packed, "GZIP")
        return tf.io.decode_raw(tf.strings.substr(plain, header, -1), tf.uint8)

    images = tf.reshape(values("images-idx3", 16), [-1, FEATURES])
    return tf.cast(images, tf.float32) / 255.0, tf.cast(values("labels-idx1", 8), tf.int32)


def batches(folder, batch):
    """Endless batches, all examples in a new order in each pass. Only numbers are shuffled; a batch is gathered at once."""
    images, labels = load(folder, "train")
    count = EXAMPLES // batch

    def one_pass(_):
        order = tf.random.shuffle(tf.range(EXAMPLES))[: count * batch]
        return tf.data.Dataset.from_tensor_slices(tf.reshape(order, [count, batch]))

    def gather(order):
        features = tf.ensure_shape(tf.gather(images, order), [batch, FEATURES])
        return features, tf.ensure_shape(tf.gather(labels, order), [batch])

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.autotune.enabled = False
    numbers = tf.data.Dataset.range(2**40).flat_map(one_pass)
    return numbers.map(gather).prefetch(2).with_options(options)
