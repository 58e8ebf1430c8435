"""Starts the parameter server and the workers of a TensorFlow cluster on 127.0.0.1, and ends them."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

END_WITHIN_S = 5


def free_addresses(count):
    """As many addresses on 127.0.0.1 whose ports nobody uses."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Cluster:
    """One parameter server and some workers, each a process. They end with `end`, and when this process does."""

    def __init__(self, workers, threads, logs):
        addresses = free_addresses(2 + workers)
        self.spec = {"chief": addresses[:1], "ps": addresses[1:2], "worker": addresses[2:]}
        self.ended = False
        self.processes = {}
        program = Path(__file__).with_name("server.py")
        for job, task in [("ps", 0), *(("worker", i) for i in range(workers))]:
            log = Path(logs) / f"{job}-{task}.log"
            command = [sys.executable, str(program), json.dumps(self.spec), job, str(task), str(threads)]
            with log.open("wb") as output:
                # A session of its own, so that Ctrl-C reaches the coordinator alone, which then ends the others.
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
                )
            self.processes[log] = process
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self):
        """Ends everything when one of the processes is lost, since the coordinator would wait for it for ever."""
        while not self.ended:
            for log, process in self.processes.items():
                status = process.poll()
                if status is not None and not self.ended:
                    print(f"error: {log.stem} ended with {status}; it said:\n{last_lines(log)}", file=sys.stderr)
                    self.end()
                    sys.stderr.flush()
                    os._exit(1)
            time.sleep(0.2)

    def pids(self):
        """The process ids, the parameter server's first."""
        return [process.pid for process in self.processes.values()]

    def end(self):
        """Ends the processes and waits until they are gone."""
        self.ended = True
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(END_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def last_lines(log, count=10):
    """The end of a log."""
    return "\n".join(Path(log).read_text(errors="replace").splitlines()[-count:])
