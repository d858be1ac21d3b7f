"""All records of the sources, by several processes; what was looked at once is kept on disk."""

import concurrent.futures
import dataclasses
import datetime
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import xxhash
from tqdm import tqdm

from trol_jax.data.check import EXAMPLES, Findings, Rules, check_rows, joined, opened
from trol_jax.data.index import stamp
from trol_jax.data.sources import SOURCES, Sample
from trol_jax.errors import UserError
from trol_jax.journal import Journal

BLOCK = 512  # rows that a process looks at before it tells
AGAIN = {"picture missing", "picture unreadable"}  # blocks with these are looked at again: they may be there now
VERSION = "check_data 2"  # to be changed with what is looked for: then all is looked at again


@dataclasses.dataclass
class SourceReport:
    """total: rows in the file, filtered ones too; published: rows that the mixture of the paper has; rows: chosen."""

    name: str
    file: str
    published: int
    rows: int
    total: int
    found: Findings


@dataclasses.dataclass(frozen=True)
class Block:
    name: str
    indexes: Sequence[int]
    asked: dict  # JSON-able, of the journal: what this depends on

    @property
    def key(self) -> str:
        return self.asked["id"]


def check(
    root: str, names: Sequence[str], rules: Rules, *, sample: int = 0, seed: int = 0, processes: int = 1,
    journal: str = "",
) -> list[SourceReport]:  # fmt: skip
    """What is found in the sources.

    sample: records of each source, drawn by `seed`; 0 = all. journal: file for what is done, "" = none; from there it
    goes on after a stop. Who has the reports removes it, as `launch.check_data` does: the next looks anew, for
    pictures may change while the files that name them do not.
    """
    root = os.path.abspath(root)
    opened.cache_clear()  # files may have changed
    reports, blocks = [], []
    for name in names:
        reports.append(_opened(root, name))
        blocks += _blocks(root, reports[-1], rules, sample, seed)
    done = _run(root, blocks, rules, processes, _begun(journal) if journal else None)
    for report in reports:
        parts = [done[block.key] for block in blocks if block.name == report.name]
        report.found = joined([report.found, *parts])
        _find_duplicates(root, report, [index for b in blocks if b.name == report.name for index in b.indexes])
    return reports


def journal_of(root: str, names: Sequence[str], rules: Rules, sample: int, seed: int) -> str:
    """A file at the root for what is done of such a check; a quick look in between leaves that of a long one alone."""
    question = json.dumps([sorted(names), dataclasses.asdict(rules), sample, seed if sample else 0])
    return os.path.join(root, f"check_data.{xxhash.xxh3_64_hexdigest(question.encode())[:8]}.jsonl")


def _begun(journal: str) -> Journal:
    try:
        os.makedirs(os.path.dirname(os.path.abspath(journal)), exist_ok=True)
        open(journal, "ab").close()
    except OSError as error:
        raise UserError(
            f"{journal} cannot be written: {error.strerror}; name another file with --journal, or --journal= for none"
        ) from None
    return Journal(Path(journal), VERSION, {"found"})


def _opened(root: str, name: str) -> SourceReport:
    spec, found = SOURCES[name], Findings()
    rows = total = 0
    try:
        source = opened(root, name)
        rows, total = len(source), source.records.total
        if not rows:
            found.add(
                "file", None, "", f"{source.records.path} has no rows" + f", of {total:,} none is kept" * (total > 0)
            )
        if rows != spec.count:
            found.add("count", None, "", f"{rows:,} rows, published are {spec.count:,}")
    except UserError as error:
        found.add("file", None, "", str(error))
    return SourceReport(name, spec.file, spec.count, rows, total, found)


def _blocks(root: str, report: SourceReport, rules: Rules, sample: int, seed: int) -> Iterator[Block]:
    if not report.rows:
        return
    chosen, drawn = range(report.rows), ""
    if 0 < sample < report.rows:
        from trol_jax.data.mixture import Order  # with grain, which the processes need not import

        chosen = np.sort(Order(report.rows, f"{seed}/sample of {report.name}").first(0, sample)).tolist()
        drawn = f"{sample}, {seed}"
    state = stamp(os.path.join(root, report.file), SOURCES[report.name].keep)
    state |= dataclasses.asdict(rules) | {"tokenizer": rules.tokenizer and stamp(rules.tokenizer)["ends"]}
    for first in range(0, len(chosen), BLOCK):
        indexes = chosen[first : first + BLOCK]
        yield Block(report.name, indexes, {"id": f"{report.name}/{drawn}/{first}", **state})


def _run(root: str, blocks: Sequence[Block], rules: Rules, processes: int, journal: Journal | None) -> dict:
    """Findings of each block, by its key."""
    stopped = os.path.getmtime(journal.path) if journal else 0  # before it is read, which may write it anew
    lines = journal.read({block.key: block.asked for block in blocks}) if journal else {}
    done = {key: Findings.from_json(line["found"]) for key, line in lines.items()}
    done = {key: found for key, found in done.items() if not found.problems.keys() & AGAIN}
    todo = [block for block in blocks if block.key not in done]
    known = sum(len(block.indexes) for block in blocks if block.key in done)
    if known:  # however old: pictures may have gone since
        when = datetime.datetime.fromtimestamp(stopped)
        again = f"{known:,} rows are not looked at again; remove {journal.path} to begin anew"
        print(f"goes on from {when:%Y-%m-%d %H:%M}: {again}", flush=True)
    looks = dict(desc="check", unit="row", mininterval=1.0, dynamic_ncols=True, smoothing=0.05)
    with tqdm(initial=known, total=sum(len(block.indexes) for block in blocks), **looks) as bar:
        for block, found in _found(root, todo, rules, processes):
            done[block.key] = found
            if journal:
                journal.append([{"id": block.key, "source": VERSION, **block.asked, "found": found.to_json()}])
            bar.update(len(block.indexes))
    return done


def _found(root: str, blocks: Sequence[Block], rules: Rules, processes: int) -> Iterator[tuple[Block, Findings]]:
    if processes == 1 or len(blocks) < 2:
        for block in blocks:
            yield block, check_rows(root, block.name, block.indexes, rules)
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads of the libraries
    pool = concurrent.futures.ProcessPoolExecutor(min(processes, len(blocks)), context, initializer=_begin)
    try:
        futures = {pool.submit(check_rows, root, block.name, block.indexes, rules): block for block in blocks}
        for future in concurrent.futures.as_completed(futures):
            yield futures.pop(future), future.result()
    except BrokenProcessPool:
        raise UserError("a process was ended from outside, perhaps for its memory; start again to go on") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """Of a worker: it leaves signals to its parent, and does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _find_duplicates(root: str, report: SourceReport, indexes: Iterable[int]) -> None:
    ids, indexes = report.found.ids, list(indexes)
    order = np.argsort(ids, kind="stable")
    again = np.sort(order[1:][ids[order[1:]] == ids[order[:-1]]])
    if not len(again):
        return
    for place in again[:EXAMPLES].tolist():
        row, sample = opened(root, report.name).read(indexes[place])
        report.found.add("duplicate id", row, sample.id, f"an earlier row has the id {sample.id[:80]!r} too")
    report.found.problems["duplicate id"] = len(again)


def first_samples(root: str, reports: Iterable[SourceReport]) -> dict[str, Sample]:
    """The first sample of each source, where that can be read, for people to look at."""
    root, samples = os.path.abspath(root), {}
    for report in reports:
        try:
            samples[report.name] = opened(root, report.name)[0]
        except (UserError, IndexError):
            continue
    return samples
