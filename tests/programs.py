"""Programs in processes of their own, which need not import JAX again: one process did, and forks for each of them.

That saves two seconds a program. It has begun nothing of what a fork must not inherit: no device, no flag of ours. What
only a fresh interpreter shows, such as what a program imports by itself, is for tests that take `fresh`.
"""

import contextlib
import functools
import gc
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import compile_fast

ROOT = Path(__file__).resolve().parents[1]
NANO = "import fixtures\nwith fixtures.nano_variants(): "  # before `launch`, for `fresh`: a `Program` knows them


def launch(name: str) -> str:
    """The code of `python -m launch.NAME`."""
    return f"import runpy; runpy.run_module('launch.{name}', run_name='__main__', alter_sys=True)"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


class Program:
    """Python code with arguments, begun at once in the root of the project, on one device."""

    def __init__(self, code: str, *arguments, **environment: str):
        self.folder = tempfile.mkdtemp(dir=_forker()[1])
        self.pid = _ask(code=code, arguments=[*map(str, arguments)], environment=environment, folder=self.folder)
        self.returncode = None

    def said(self) -> tuple[str, str]:
        """(output, errors) until now."""
        files = (Path(self.folder, name) for name in ("out", "err"))
        out, err = (file.read_text() if file.exists() else "" for file in files)
        return out, err

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _ask(ended=self.pid)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait_for(self, characters: int) -> None:
        """Of its output; or its end."""
        while len(self.said()[0]) < characters and self.poll() is None:
            time.sleep(0.01)

    def wait_for_line(self) -> None:
        """Of its output; or its end."""
        while not self.said()[0].endswith("\n") and self.poll() is None:
            time.sleep(0.01)

    def wait(self, timeout: float = 240) -> tuple[int, str, str]:
        """(status, output, errors)."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.send_signal(signal.SIGKILL)
                raise TimeoutError(f"it took more than {timeout} s: {self.said()}")
            time.sleep(0.02)
        return self.returncode, *self.said()


def fresh(*command, wrapper: Sequence[str] = ()) -> tuple[int, str, str]:
    """(status, output, errors) of Python with these arguments, by an interpreter that has imported nothing."""
    here = dict(cwd=ROOT, env=_environment(_forker()[1]), capture_output=True, text=True, timeout=240)
    done = subprocess.run([*wrapper, sys.executable, *map(str, command)], **here)
    return done.returncode, done.stdout, done.stderr


@functools.cache
def _forker() -> tuple[subprocess.Popen, str]:
    """The process that forks, and a folder for what programs say and for what one has compiled and others find."""
    folder = tempfile.mkdtemp(prefix="programs-")
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    command = [sys.executable, "-c", "import programs; programs.serve()"]
    return subprocess.Popen(command, cwd=ROOT, env=_environment(folder), **pipes), folder


def _environment(folder: str) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), f"{ROOT}/tests", os.environ.get("PYTHONPATH")])),
        "XLA_FLAGS": compile_fast.FLAGS,
        "JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def _ask(**request):
    process, _ = _forker()
    print(json.dumps(request), file=process.stdin, flush=True)
    return json.loads(process.stdout.readline())


def stop() -> None:
    """Ends the process that forks, and what still runs of what it forked."""
    if _forker.cache_info().currsize:
        process, folder = _forker()
        process.communicate()
        shutil.rmtree(folder)
        _forker.cache_clear()


def serve() -> None:
    """The forking process. What it forked returns from here too, after its program: Python ends as it always does."""
    import fixtures

    for name in ("convert.check", "tqdm", "trol_jax.serve.api", "trol_jax.serve.http", "trol_jax.train.loop"):
        with contextlib.suppress(ModuleNotFoundError):  # which the program that needs it tells
            importlib.import_module(name)
    nano = fixtures.nano_variants()
    nano.__enter__()
    gc.freeze()  # nothing of it is garbage in what is forked
    running = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "ended" in request:
            pid, status = os.waitpid(request["ended"], os.WNOHANG)
            running.discard(pid)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                return _run(**request)
            running.add(answer)
        print(json.dumps(answer), flush=True)
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _run(code: str, arguments: list[str], environment: dict[str, str], folder: str) -> None:
    for number, path in enumerate((os.devnull, f"{folder}/out", f"{folder}/err")):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = open(0)  # noqa: SIM115 (that of the forking process has been read from)
    sys.argv = ["-c", *arguments]
    os.environ.update(environment)
    exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
