"""What prepared data says of itself: the plan, a line for each shard with its checksum, the splits of the dataset.

Each is compared with the others: what was emptied, cut or changed on the way is told, and not read as less data.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import xxhash
from tqdm import tqdm

from trol_jax.data import tfds
from trol_jax.data.paths import resolve
from trol_jax.errors import UserError

PLAN, SHARDS = "plan.json", "shards.jsonl"
NAMED = 20  # of the damaged
Lines = Mapping[str, Sequence[dict]]  # of the shards of each source, in order


def shards_of(folder: str | os.PathLike) -> dict[str, list[dict]]:
    """Lines of the shards by source. UserError unless they are those that the plan implies, each below the folder."""
    place, plan = Path(folder) / SHARDS, Path(folder) / PLAN
    try:
        lines = {line["shard"]: line for line in map(json.loads, place.read_text(encoding="utf-8").splitlines())}
        for name in lines:
            resolve(os.path.abspath(folder), name)
        planned = _planned(json.loads(plan.read_bytes()))
        rows = {name: line["samples"] + line["left_out"] for name, line in lines.items()}
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{place} or {plan} cannot be read: {error!r}; copy them again, or prepare anew") from None
    if wrong := [name for name in planned | rows if rows.get(name) != planned.get(name, ("", -1))[1]]:
        raise UserError(
            f"{place} has not the shards of {plan.name}: {wrong[0]} is missing, of other rows, or not planned; "
            "copy both again, or prepare anew"
        )
    found = {source: [] for source, _ in planned.values()}
    for name, (source, _) in planned.items():
        found[source].append(lines[name])
    return found


def _planned(plan: dict) -> dict[str, tuple[str, int]]:
    """(source, rows) of each shard by file name, in order."""
    size, shards = plan["shard_rows"], {}
    for source, about in plan["sources"].items():
        count = -(-about["samples"] // size)
        for number in range(count):
            rows = min(size, about["samples"] - number * size)
            shards[tfds.shard_name(source, number, count)] = source, rows
    return shards


def splits(lines: Lines) -> dict[str, tuple[list[int], int]]:
    """(samples of each shard, bytes of all records) by source, as `tfds.dataset_info` takes them."""
    found = {
        name: ([line["samples"] for line in each], sum(line["record_bytes"] for line in each))
        for name, each in lines.items()
    }
    return {name: each for name, each in found.items() if sum(each[0])}  # TFDS takes none without samples


def lengths_of(folder: str | os.PathLike) -> dict[str, list[int]]:
    """Samples of each shard by split, as the dataset says."""
    info = Path(folder) / tfds.INFO
    try:
        found = json.loads(info.read_bytes())["splits"]
        return {split["name"]: [int(length) for length in split["shardLengths"]] for split in found}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{info} does not describe a dataset: {error}; prepare the data again") from None


def require_same(folder: str | os.PathLike, lengths: Mapping[str, list[int]], lines: Lines) -> None:
    known = {name: each for name, (each, _) in splits(lines).items()}
    if wrong := [name for name in known | dict(lengths) if known.get(name) != lengths.get(name)]:
        raise UserError(
            f"{Path(folder) / tfds.INFO} gives {wrong[0]} other samples than {SHARDS}; copy both again, or prepare anew"
        )


def verify(folder: str | os.PathLike) -> None:
    """Reads every shard. UserError names those that are missing, beyond the folder, or differ from checksums, and files
    that do not describe them.
    """
    found = shards_of(folder)
    require_same(folder, lengths_of(folder), found)
    wrong, lines = [], [line for each in found.values() for line in each]
    size = sum(line["bytes"] for line in lines)
    with tqdm(desc="verify", total=size, unit="B", unit_scale=True, mininterval=0.5, dynamic_ncols=True) as bar:
        for line in lines:
            try:
                same = checksum(resolve(os.path.abspath(folder), line["shard"])).items() <= line.items()
            except OSError:
                same = False
            wrong += [] if same else [line["shard"]]
            bar.update(line["bytes"])
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(lines)} shards in {folder} are missing or damaged: {', '.join(wrong[:NAMED])}; "
            "copy them again, or prepare the data in another folder"
        )


def checksum(path: str | os.PathLike) -> dict:
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
        return {"bytes": file.tell(), "xxh3_128": digest.hexdigest()}
