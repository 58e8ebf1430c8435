"""One process of a TensorFlow cluster, a parameter server or a worker: server.py CLUSTER JOB TASK THREADS.

It is started by cluster.py, and ends when its standard input is closed, so that it never outlives its coordinator.
"""

import json
import os
import sys


def main():
    spec, job, task, threads = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    import tensorflow as tf

    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=threads, inter_op_parallelism_threads=threads
    )
    server = tf.distribute.Server(
        tf.train.ClusterSpec(spec), job_name=job, task_index=task, protocol="grpc", config=config
    )
    sys.stdin.read()
    del server
    # TensorFlow's server has no end of its own.
    os._exit(0)


if __name__ == "__main__":
    main()
