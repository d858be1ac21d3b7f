"""Metrics of a run: a progress bar, JSON lines and TensorBoard."""

import contextlib
import json
import math
import os
import pathlib
import time

import xxhash
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from tqdm import tqdm

from trol_jax.errors import UserError

FLUSH_SECONDS = 30  # of the TensorBoard file


class Metrics:
    """Writes `metrics.jsonl` (one object a line) and TensorBoard events under `tensorboard/` of a run directory.

    wandb: project of Weights & Biases that gets them too, with the settings; "" = none. What fails there later is told
    once.
    start_step: steps done when the run (re)starts. Lines of later steps are what a killed run wrote after its last
    checkpoint; they are dropped, so that every step stands once. Use it by `with`. UserError when the disk is full;
    what fails while another error is on its way is not told.
    """

    def __init__(
        self, workdir: pathlib.Path, start_step: int, total_steps: int, wandb: str = "", settings: dict | None = None
    ):
        self.wandb, self.told = wandb and start_wandb(wandb, workdir, settings), False
        self.path = workdir / "metrics.jsonl"
        self.last_step = start_step  # of the last line
        with self.explained():
            self._drop_lines_after(start_step)
            self.lines = open(self.path, "a", buffering=1)  # noqa: SIM115 (open for the whole run)
            (workdir / "tensorboard").mkdir(exist_ok=True)
            # The writer below SummaryWriter: that one's thread and exit hook print tracebacks when the disk is full.
            self.board = EventsWriter(str(workdir / "tensorboard" / "events"))
            self.board.write_event(self._event(start_step + 1, session_log=SessionLog(status=SessionLog.START)))
        self.flushed = time.monotonic()
        self.bar = tqdm(initial=start_step, total=total_steps, unit="step", mininterval=1.0, dynamic_ncols=True)
        self.bar.set_description("train")

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.bar.close()
        if self.wandb:
            self._to_wandb(self.wandb.finish, exit_code=int(error is not None))
        with self.explained() if error is None else contextlib.suppress(OSError):
            try:
                self.board.close()
            finally:
                self.lines.close()

    def write(self, step: int, values: dict[str, float | list[float]]) -> None:
        """A list is written as it is in the lines, and in TensorBoard as name/0, name/1, ..."""
        rounded = {name: rounded_to_six(value) for name, value in values.items()}
        with self.explained():
            self.lines.write(json.dumps({"step": step} | rounded) + "\n")
            for name, value in flat(values).items():
                self.board.write_event(self._event(step, summary=scalar(name, value)))
            if time.monotonic() > self.flushed + FLUSH_SECONDS:
                self.board.flush()
                self.flushed = time.monotonic()
        if self.wandb:
            self._to_wandb(self.wandb.log, flat(values), step=step)
        self.last_step = step
        shown = {"loss": "loss", "examples/s": "examples_per_second"}
        self.bar.set_postfix({k: f"{values[name]:.4g}" for k, name in shown.items() if name in values}, refresh=False)

    def advance(self) -> None:
        self.bar.update()

    def tell(self, line: str) -> None:
        tqdm.write(line)

    def _to_wandb(self, call, *values, **options) -> None:
        try:
            call(*values, **options)
        except Exception as error:  # a service that is away is no reason to end a run
            if not self.told:
                self.tell(f"Weights & Biases takes no metrics ({_line(error)}); the run goes on, and has them itself")
            self.told = True

    @contextlib.contextmanager
    def explained(self):
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"cannot write metrics beside {self.path}: {reason}; make room, then start again"
            ) from error

    @staticmethod
    def _event(step: int, **content) -> Event:
        return Event(wall_time=time.time(), step=step, **content)

    def _drop_lines_after(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue  # the line that was being written when the run was killed
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        os.replace(temporary, self.path)


class Silent(contextlib.nullcontext):
    """Of a process that leaves the writing to another."""

    def __init__(self, workdir: pathlib.Path, start_step: int, *_):
        super().__init__(self)
        self.last_step = start_step

    def write(self, step: int, values: dict) -> None:
        self.last_step = step

    def advance(self) -> None:
        pass

    def tell(self, line: str) -> None:
        pass


def start_wandb(project: str, workdir: pathlib.Path, settings: dict | None):
    """The run of that name there, which goes on where it was."""
    try:
        import wandb
    except ImportError:
        raise UserError("config.wandb names a project, and wandb is not installed: pip install wandb") from None
    place = str(workdir.absolute())
    name = f"{workdir.name}-{xxhash.xxh32_hexdigest(os.fsencode(place))}"
    try:
        return wandb.init(project=project, dir=place, id=name, name=workdir.name, resume="allow", config=settings)
    except Exception as error:  # of its own, and of the network
        raise UserError(
            f"config.wandb: {project} cannot be opened: {_line(error)}; wandb login, or set it to ''"
        ) from error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def rounded_to_six(value: float | list[float]) -> float | list[float]:
    return [rounded_to_six(each) for each in value] if isinstance(value, list) else float(f"{value:.6g}")


def flat(values: dict[str, float | list[float]]) -> dict[str, float]:
    found = {}
    for name, value in values.items():
        found |= {f"{name}/{i}": each for i, each in enumerate(value)} if isinstance(value, list) else {name: value}
    return found


def is_finite(values: dict[str, float | list[float]]) -> bool:
    return all(math.isfinite(value) for value in flat(values).values())
