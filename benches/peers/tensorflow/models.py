"""The two models that are compared: 2NN (784-200-200-10) and the CNN of McMahan et al. 2017, as plain functions."""

import math

import tensorflow as tf

SHAPES = {
    "2nn": [(784, 200), (200,), (200, 200), (200,), (200, 10), (10,)],
    "cnn": [(5, 5, 1, 32), (32,), (5, 5, 32, 64), (64,), (3136, 512), (512,), (512, 10), (10,)],
}


def initial(model):
    """Values to begin with: He-normal weights, biases of zero."""

    def one(shape):
        if len(shape) == 1:
            return tf.zeros(shape)
        return tf.random.normal(shape, stddev=math.sqrt(2 / math.prod(shape[:-1])))

    return [one(shape) for shape in SHAPES[model]]


def flat(values):
    """All values in one vector."""
    return tf.concat([tf.reshape(each, [-1]) for each in values], 0)


def unflat(model, vector):
    """The values that `flat` put together."""
    sizes = [math.prod(shape) for shape in SHAPES[model]]
    return [tf.reshape(part, shape) for part, shape in zip(tf.split(vector, sizes), SHAPES[model])]


def logits(model, values, features):
    """Outputs of the last layer."""
    layers = list(zip(values[::2], values[1::2]))
    result = features
    if model == "cnn":
        result = tf.reshape(features, [-1, 28, 28, 1])
        for kernel, bias in layers[:2]:
            result = tf.nn.bias_add(tf.nn.conv2d(result, kernel, 1, "SAME"), bias)
            result = tf.nn.relu(tf.nn.max_pool2d(result, 2, 2, "VALID"))
        result = tf.reshape(result, [-1, 3136])
        layers = layers[2:]
    for index, (weight, bias) in enumerate(layers):
        result = tf.nn.bias_add(tf.matmul(result, weight), bias)
        if index + 1 < len(layers):
            result = tf.nn.relu(result)
    return result


def gradient(model, values, features, labels):
    """The mean gradient of the batch, one tensor for each of `values`, which may be one flat vector."""
    with tf.GradientTape() as tape:
        tape.watch(values)
        parts = unflat(model, values[0]) if len(values) == 1 else values
        outputs = logits(model, parts, features)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=outputs)
        loss = tf.reduce_mean(losses)
    return tape.gradient(loss, values)


def step(model, variables, features, labels, rate):
    """One step of SGD: pulls the variables from where they are, and has the gradient applied there."""
    deltas = gradient(model, [variable.read_value() for variable in variables], features, labels)
    for variable, delta in zip(variables, deltas):
        with tf.device(variable.device):
            tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=rate, delta=delta)
