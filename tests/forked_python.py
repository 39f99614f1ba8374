"""A stand-in for ``python -m`` and ``python -c``: a process of its own for each call, forked from one that has imported torch and MONAI.

Those imports take most of the time of a short run. The process that holds them has imported nothing of monai_gmr: all that
monai_gmr does when it is imported happens in each call. Arguments, environment, folder, files, signals and exit status are those
of the caller.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
from contextlib import suppress


def call(path: str, *arguments: str) -> int:
    """Run ``python [-u] -m MODULE ARGUMENTS`` or ``-c CODE ARGUMENTS``; returns the exit status, negative for the signal that ended it."""
    start = 1 if arguments[0] == "-u" else 0
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        socket.send_fds(server, [b"0"], [0, 1, 2])
        server.sendall(
            json.dumps({"argv": arguments[start:], "cwd": os.getcwd(), "env": dict(os.environ)}).encode() + b"\n"
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: server.sendall(bytes([number])))
        return int(server.makefile().readline())


def serve(path: str) -> dict:
    """Answer calls until standard input ends; returns what ``call`` wrote, in each process that is to run a module."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        # nobody waits for the process that follows a run
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:
                sys.exit()
            connection, _ = listener.accept()
            if not os.fork():
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection, connection.makefile("rb") as requests:
        _, files, _, _ = socket.recv_fds(connection, 1, 3)
        request = json.loads(requests.readline())
        if run := os.fork():
            follow(connection, requests, run)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    return request


def follow(connection, requests, run: int) -> None:
    """Pass signals on to a run and its status to the caller; a run whose caller has gone is killed."""

    def pass_signals():
        with suppress(ProcessLookupError):
            while number := requests.read(1):
                os.kill(run, number[0])
            os.kill(run, signal.SIGKILL)

    threading.Thread(target=pass_signals, daemon=True).start()
    status = os.waitstatus_to_exitcode(os.waitpid(run, 0)[1])
    with suppress(BrokenPipeError):
        connection.sendall(f"{status}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    name, socket_path, *rest = sys.argv[1:]
    if name == "call":
        result = call(socket_path, *rest)
        if result < 0:
            with suppress(OSError):
                signal.signal(-result, signal.SIG_DFL)
            os.kill(os.getpid(), -result)
        sys.exit(result)
    for package in ("torch.distributed.run", "monai.bundle", "ignite.metrics", "nibabel"):
        importlib.import_module(package)
    # garbage collections of the forked processes, also those at their end, leave the packages out: they take a second
    gc.collect()
    gc.freeze()
    asked = serve(socket_path)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    (kind, what, *rest), sys.path[0] = asked["argv"], asked["cwd"]
    # what the run starts is forked, too; conftest.py wrote it there
    sys.executable = os.path.join(os.path.dirname(socket_path), "python")
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = [what if kind == "-m" else kind, *rest]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(what, {"__name__": "__main__"})
