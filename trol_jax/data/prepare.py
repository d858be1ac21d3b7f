"""The sources written once as a dataset of TensorFlow Datasets (`tfds`): texts and pictures of a sample together.

A shard is a piece of a source's rows, written by one process, and a line in a journal with its checksum once it is
complete. The folder gets its final name when all of them are: whatever ends the work before, the next start goes on,
and writes those again that left samples out.
"""

import contextlib
import dataclasses
import fcntl
import io
import json
import multiprocessing
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_end
from pathlib import Path

import xxhash
from PIL import Image
from tqdm import tqdm

from trol_jax import journal, manifest
from trol_jax.data import tfds
from trol_jax.data.images import MAX_PIXELS, ORIENTATION, load_image, read_file, try_to_decode
from trol_jax.data.index import stamp
from trol_jax.data.paths import resolve
from trol_jax.data.shards import PLAN, SHARDS, checksum, shards_of, splits
from trol_jax.data.sources import Sample, Source
from trol_jax.errors import StorageError, UserError

PICTURES, BAD = ("keep", "jpeg"), ("fail", "skip")
SHARD_ROWS = 8192  # at 150 KB a picture 1.2 GB; 285 shards of the whole mixture, which may all be open at once
QUALITY = 95  # of JPEG
NAMED = 20  # samples left out that are named, a shard
Shard = tuple[str, int]  # source, number
Advance = Callable[[int, int], None]  # of samples done and bytes written


@dataclasses.dataclass(frozen=True)
class Job:
    """How shards are made, the same in every process.

    pictures: "keep", files as they are (`encoded` says which are not), or "jpeg".
    bad: "fail" or "skip", what becomes of a sample that cannot be read or whose picture cannot.
    """

    sources: Mapping[str, Source]
    folder: str
    pictures: str
    bad: str
    shard_rows: int

    def shards(self) -> dict[str, Shard]:
        """By file name, in order."""
        counts = {name: -(-len(source) // self.shard_rows) for name, source in self.sources.items()}
        return {
            tfds.shard_name(name, number, count): (name, number)
            for name, count in counts.items() for number in range(count)
        }  # fmt: skip

    def rows(self, shard: Shard) -> range:
        name, number = shard
        first = number * self.shard_rows
        return range(first, min(first + self.shard_rows, len(self.sources[name])))

    def write(self, file: str, advance: Advance) -> dict:
        """Writes a shard; returns its line of the journal."""
        from array_record.python.array_record_module import ArrayRecordWriter

        place, size, samples, left_out = os.path.join(self.folder, file), 0, 0, []
        temporary = f"{place}.{secrets.token_hex(4)}.tmp"
        try:
            writer = ArrayRecordWriter(temporary, tfds.WRITER)
            for record in self._records(file, left_out):
                if record is not None:
                    writer.write(record)
                    size, samples = size + len(record), samples + 1
                advance(1, len(record or b""))
            writer.close()
            manifest.sync(temporary)
            line = {"shard": file, "samples": samples, "left_out": len(left_out), "named": left_out[:NAMED]}
            line |= {"record_bytes": size, **checksum(temporary)}
            os.replace(temporary, place)
        except (OSError, RuntimeError) as error:  # the latter is array_record's
            raise UserError(f"{place} cannot be written: {error}; make room, then start again") from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(temporary)
        return line

    def _records(self, file: str, left_out: list[str]) -> Iterator[bytes | None]:
        """Of each row; None for one that is left out."""
        shard = self.shards()[file]
        source = self.sources[shard[0]]
        for row in self.rows(shard):
            try:
                yield tfds.encode(self._with_pictures(source[row], source.root))
            except StorageError:
                raise
            except UserError as error:
                if self.bad == "fail":
                    raise UserError(f"{error}; --bad=skip leaves such samples out") from None
                left_out.append(str(error))
                yield None

    def _with_pictures(self, sample: Sample, root: str) -> Sample:
        try:
            pictures = tuple(
                encoded(each if isinstance(each, bytes) else resolve(root, each), self.pictures)
                for each in sample.pictures
            )
        except UserError as error:
            raise type(error)(f"sample {sample.id} of {sample.source}: {error}") from None
        return dataclasses.replace(sample, pictures=pictures)


def encoded(picture: str | bytes, how: str) -> bytes:
    """A picture file that every reader decodes alike, with the pixels that `load_image` gives.

    JPEG files stay as they are, and PNG files for "keep", if in colour or grey. Others, as GIF, CMYK, palettes and
    transparent ones, become PNG ("keep") or JPEG.
    """
    data = picture if isinstance(picture, bytes) else read_file(picture)
    if _stays(data, how):
        try_to_decode(data, "the picture" if isinstance(picture, bytes) else picture)
        return data
    file = io.BytesIO()
    options = {"format": "PNG"} if how == "keep" else {"format": "JPEG", "quality": QUALITY}
    Image.fromarray(load_image(picture)).save(file, **options)
    return file.getvalue()


def _stays(data: bytes, how: str) -> bool:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MAX_PIXELS:
                return False  # `load_image` says so
            plain = image.mode in ("L", "RGB") and not image.has_transparency_data
            upright = image.getexif().get(ORIENTATION, 1) == 1
            return plain and (image.format == "JPEG" or (how == "keep" and upright))
    except Exception:  # decoders raise anything; `load_image` says what is wrong
        return False


def prepare(
    sources: Mapping[str, Source],
    output: str | os.PathLike,
    *,
    pictures: str = "keep",
    bad: str = "fail",
    shard_rows: int = SHARD_ROWS,
    processes: int = 1,
) -> list[dict]:
    """Writes the sources to output/NAME/VERSION of `tfds`, or goes on with it; returns the lines of the journal.

    See `Job`. UserError for bad settings, what cannot be read or written, and for an output of other data or settings.
    """
    _check(sources, pictures, bad, shard_rows, processes)
    final = Path(output).absolute() / tfds.NAME / tfds.VERSION
    working = final.with_name(f"{tfds.VERSION}.unfinished")
    job = Job(sources, str(working), pictures, bad, shard_rows)
    plan = _plan(job)
    if final.exists():
        _require_same(plan, final)
        return [line for lines in shards_of(final).values() for line in lines]
    with journal.explained(working):
        working.mkdir(parents=True, exist_ok=True)
    with _alone(working):
        if (working / PLAN).exists():
            _require_same(plan, working)
        else:
            journal.write(working / PLAN, json.dumps(plan, indent=1).encode())
        lines = _write_missing(job, plan, processes)
        _describe(job, lines)
        with journal.explained(final):
            os.rename(working, final)
            manifest.sync(final.parent)
    return lines


# ---------------------------------------------------------------------- what is to be done
def _check(sources: Mapping[str, Source], pictures: str, bad: str, shard_rows: int, processes: int) -> None:
    for name, value, known in (("pictures", pictures, PICTURES), ("bad", bad, BAD)):
        if value not in known:
            raise UserError(f"{name} is {value!r}, must be {' or '.join(known)}")
    for name, value in (("shard_rows", shard_rows), ("processes", processes)):
        if value < 1:
            raise UserError(f"{name} is {value}, must be at least 1")
    if empty := [name for name, source in sources.items() if not len(source)]:
        raise UserError(f"{empty[0]} has no samples; leave it out with --sources")


def _plan(job: Job) -> dict:
    """What shards depend on."""
    files = {name: {"samples": len(each), **stamp(each.records.path)} for name, each in job.sources.items()}
    return {"pictures": job.pictures, "bad": job.bad, "shard_rows": job.shard_rows, "sources": files}


def _require_same(plan: dict, folder: Path) -> None:
    try:
        old = json.loads((folder / PLAN).read_bytes())
    except (OSError, ValueError):
        old = {}
    if differing := [name for name in plan if plan[name] != old.get(name)]:
        raise UserError(
            f"{folder} was begun with other data or settings ({', '.join(differing)} differ); "
            "name another --output, or remove it"
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While no other process works here. What one that was killed left half-written is removed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for each in folder.glob("*.tmp"):
            each.unlink()
        yield
    except BlockingIOError:
        raise UserError(f"another process writes to {folder}; wait until it ends") from None
    finally:
        os.close(descriptor)


def _write_missing(job: Job, plan: dict, processes: int) -> list[dict]:
    """Lines of all shards, in order."""
    shards, folder = job.shards(), Path(job.folder)
    identity = xxhash.xxh3_128_hexdigest(json.dumps(plan, sort_keys=True).encode())
    fields = ("samples", "left_out", "named", "record_bytes", "bytes", "xxh3_128")
    kept = journal.Journal(folder / SHARDS, identity, fields, key="shard")
    done = {  # of those that left samples out these may be there now
        name: line for name, line in kept.read({name: {} for name in shards}).items()
        if not line["left_out"] and (folder / name).is_file() and (folder / name).stat().st_size == line["bytes"]
    }  # fmt: skip
    kept.write(done.values())
    rows = sum(len(job.rows(shards[name])) for name in done)
    size = sum(line["record_bytes"] for line in done.values())
    total, todo = sum(map(len, job.sources.values())), [name for name in shards if name not in done]
    with tqdm(initial=rows, total=total, unit="sample", mininterval=0.5, dynamic_ncols=True) as bar:

        def advance(samples: int, written: int) -> None:
            nonlocal size
            size += written
            bar.set_postfix_str(f"{size / 1e9:.2f} GB", refresh=False)
            bar.update(samples)

        for line in _here(job, todo, advance) if processes == 1 else _several(job, todo, advance, processes):
            done[line["shard"]] = line
            kept.append([{"shard": line["shard"], "source": identity} | line])
    return [done[name] for name in shards]


def _describe(job: Job, lines: list[dict]) -> None:
    """The files that make a dataset of the shards."""
    by_source, shards = {name: [] for name in job.sources}, job.shards()
    for line in lines:
        by_source[shards[line["shard"]][0]].append(line)
    about = tfds.dataset_info(splits(by_source))
    for name, body in ((tfds.FEATURES, tfds.features(job.pictures)), (tfds.INFO, about)):
        journal.write(Path(job.folder) / name, json.dumps(body, indent=2).encode())
        manifest.sync(Path(job.folder) / name)


# ---------------------------------------------------------------------- processes
def _here(job: Job, todo: list[str], advance: Advance) -> Iterator[dict]:
    for name in todo:
        yield job.write(name, advance)


def _several(job: Job, todo: list[str], advance: Advance, processes: int) -> Iterator[dict]:
    """The same in several processes, in the order in which they come to their ends."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit threads and locks
    counts, seen = context.RawArray("q", 2 * len(todo) + 1), (0, 0)  # samples and bytes of each, and whether to stop
    pool = ProcessPoolExecutor(min(processes, max(1, len(todo))), context, _begin, (job, counts))
    try:
        pending = {pool.submit(_one, name, 2 * number) for number, name in enumerate(todo)}
        while pending:
            ended, pending = wait(pending, 0.5, FIRST_COMPLETED)
            now = sum(counts[:-1:2]), sum(counts[1::2])
            advance(*(new - old for new, old in zip(now, seen, strict=True)))
            seen = now
            yield from (each.result() for each in ended)
    except BrokenProcessPool:
        raise UserError("a process ended before its work, perhaps for want of memory; start again to go on") from None
    finally:
        counts[-1] = True
        pool.shutdown(cancel_futures=True)


def _begin(*work) -> None:
    """In a new process: it leaves signals of the terminal to its parent, and does not outlive it."""

    def end_with_parent():
        wait_for_end([multiprocessing.parent_process().sentinel])
        os._exit(1)

    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def _one(name: str, place: int) -> dict:
    job, counts = _work

    def advance(samples: int, written: int) -> None:
        counts[place] += samples
        counts[place + 1] += written
        if counts[-1]:
            raise UserError("stopped, for another process met an error")

    return job.write(name, advance)
