"""How a run is watched and told to stop, by schedulers and people: a heartbeat, notices, a profile."""

import contextlib
import datetime
import json
import os
import pathlib
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable

import jax

BEAT = "heartbeat.json"
SECONDS = 10.0  # between two beats, and between two looks at what the cloud says


class Heartbeat:
    """Keeps `heartbeat.json` of a run: state, step, steps, when (UTC) and where. Use it by `with`.

    It is written by the loop itself, at most every `SECONDS`: a run that hangs falls silent. States: starting,
    training, saving, evaluating; at the end done, as the loop says, else stopped (start it again) or failed, then with
    the error. A disk that cannot take it does not end the run.
    """

    def __init__(self, workdir: pathlib.Path, step: int, steps: int):
        self.path, self.steps, self.last, self.step = workdir / BEAT, steps, ("", 0.0), step
        self.beat("starting", step)

    def beat(self, state: str, step: int, **more) -> None:
        self.step = step
        if self.last[0] == state and time.monotonic() < self.last[1] + SECONDS:
            return
        self.last = state, time.monotonic()
        content = {
            "state": state, "step": step, "steps": self.steps,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(), "process": os.getpid(),
        }  # fmt: skip
        with contextlib.suppress(OSError):
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(json.dumps(content | more) + "\n")
            os.replace(temporary, self.path)

    def __enter__(self) -> "Heartbeat":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if error is not None:
            self.beat("failed", self.step, error=" ".join(f"{kind.__name__}: {error}".split()))
        elif self.last[0] != "done":
            self.beat("stopped", self.step)


class Silent(contextlib.nullcontext):
    """Of a process that leaves the writing to another."""

    def __init__(self, workdir: pathlib.Path, step: int, steps: int):
        super().__init__(self)

    def beat(self, state: str, step: int) -> None:
        pass


# ---------------------------------------------------------------------- told to stop
METADATA = "http://169.254.169.254"  # where a cloud's machine is told of itself
VENDOR = pathlib.Path("/sys/class/dmi/id/sys_vendor")


def _google() -> bool:
    """Whether this machine is being taken away; documented at Compute Engine, "Preemptible VM instances"."""
    path = "/computeMetadata/v1/instance/preempted"
    return _ask(path, {"Metadata-Flavor": "Google"}) == "TRUE"


def _amazon() -> bool:
    """The same; documented at EC2, "Spot Instance interruption notices": there is no such page until then."""
    token = _ask("/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    return bool(_ask("/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token}))


def _ask(path: str, headers: dict, method: str = "GET") -> str:
    request = urllib.request.Request(METADATA + path, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        return answer.read(1000).decode(errors="replace").strip()


CLOUDS = {"Google": _google, "Amazon EC2": _amazon}  # by the vendor of the machine


@contextlib.contextmanager
def told_to_stop():
    """A list that is empty until SIGTERM or a cloud's notice arrives; the step under way is finished first."""
    received = []
    before = None
    if jax.process_count() == 1:  # JAX tells several of them of a signal, see `hosts.told_to_stop`
        before = signal.signal(signal.SIGTERM, lambda number, frame: received.append("SIGTERM"))
    ended = threading.Event()
    if taken := CLOUDS.get(_vendor()):
        threading.Thread(target=_listen, args=(taken, ended), daemon=True).start()
    try:
        yield received
    finally:
        ended.set()
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _vendor() -> str:
    try:
        return VENDOR.read_text().strip()
    except OSError:
        return ""


def _listen(taken: Callable[[], bool], ended: threading.Event) -> None:
    while not ended.wait(SECONDS / 2):
        with contextlib.suppress(OSError):  # no such page, and all that is wrong with a network
            if taken():
                return os.kill(os.getpid(), signal.SIGTERM)


# ---------------------------------------------------------------------- where the time goes
class Profile(contextlib.AbstractContextManager):
    """Of the steps first to last, both included, into `profile/` of a run, for TensorBoard or Perfetto; () = none."""

    def __init__(self, workdir: pathlib.Path, steps: tuple[int, ...]):
        self.folder, self.steps, self.on = str(workdir / "profile"), steps, False

    def before(self, step: int) -> None:
        if self.steps and not self.on and self.steps[0] <= step <= self.steps[1]:
            jax.profiler.start_trace(self.folder)
            self.on = True

    def after(self, step: int, values) -> None:
        if self.on and step >= self.steps[1]:
            jax.block_until_ready(values)
            self._stop()

    def __exit__(self, *_) -> None:
        if self.on:
            self._stop()

    def _stop(self) -> None:
        self.on = False
        jax.profiler.stop_trace()
