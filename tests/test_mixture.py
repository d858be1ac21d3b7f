"""Sources joined: what an epoch holds, its order, and that any position can be computed anywhere."""

import collections
import itertools

import grain
import numpy as np
import pytest
from absl import flags
from grain.experimental import ElasticIterator

from trol_jax.data.demo import write_demo
from trol_jax.data.mixture import Mixture, Order, Part
from trol_jax.data.sources import SOURCES, open_sources
from trol_jax.errors import UserError

SOURCE = {name: [f"{name}{i}" for i in range(size)] for name, size in {"a": 100, "b": 10, "c": 1}.items()}
ALL = [Part(name) for name in SOURCE]


def epoch(mixture, number=0):
    return [mixture[number * len(mixture) + i] for i in range(len(mixture))]


def test_an_epoch_holds_every_sample_once_in_another_order_each_time():
    mixture = Mixture(SOURCE, ALL, seed=7)
    everything = sorted(itertools.chain(*SOURCE.values()))
    assert len(mixture) == 111 and mixture.counts == {"a": 100, "b": 10, "c": 1}
    orders = [epoch(mixture, number) for number in range(3)]
    assert all(sorted(order) == everything for order in orders)
    assert len({tuple(order) for order in [*orders, epoch(Mixture(SOURCE, ALL, seed=8))]}) == 4
    assert orders[0] == epoch(Mixture(SOURCE, ALL, seed=7))
    assert [SOURCE[name][row] for name, row in map(mixture.place, range(111))] == orders[0]
    places = [i for i, sample in enumerate(orders[0]) if sample.startswith("b")]
    assert min(places) < 40 and max(places) > 70  # mixed globally


def test_the_order_does_not_change_between_releases():
    assert [Mixture(SOURCE, ALL, seed=0)[i] for i in (0, 1, 2, 500, 10**9)] == ["a50", "a64", "a57", "a96", "a26"]


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 100, 1025])
def test_orders_are_permutations(length):
    order = Order(length, "x")
    passes = [[order[number * length + i] for i in range(length)] for number in range(4)]
    assert all(sorted(places) == list(range(length)) for places in passes)
    assert [order.first(number, length).tolist() for number in range(4)] == passes
    assert length < 5 or len(set(map(tuple, [*passes, [Order(length, "y")[i] for i in range(length)]]))) == 5


def test_an_order_is_as_good_as_chance():
    length = 20_000
    order = Order(length, "quality").first(0, length)
    for lag in (1, 2, 64):  # neighbours tell nothing of each other; five standard errors
        assert abs(np.corrcoef(order[:-lag], order[lag:])[0, 1]) < 5 / length**0.5
    assert abs(np.corrcoef(order, np.arange(length))[0, 1]) < 5 / length**0.5
    table, _, _ = np.histogram2d(order, np.arange(length), bins=20)
    assert ((table - 50) ** 2 / 50).sum() < 400 + 5 * (2 * 400) ** 0.5  # chi-square, 400 cells of 50
    after, _, _ = np.histogram2d(order[:-1], order[1:], bins=20)
    assert ((after - 50) ** 2 / 50).sum() < 400 + 5 * (2 * 400) ** 0.5


def test_what_was_seen_is_counted_without_looking():
    mixture = Mixture(SOURCE, [Part("a", repeat=0.3), Part("b"), Part("c", repeat=5)], seed=2)
    seen = collections.Counter()
    for position in range(100):
        assert mixture.seen(position) == {name: seen[name] for name in "abc"}
        seen[mixture.place(position)[0]] += 1


@pytest.mark.parametrize(("repeat", "size"), [(2, 200), (0.5, 50), (0.3, 30), (2.5, 250), (1 / 3, 33)])
def test_repeats_see_all_samples_equally_often(repeat, size):
    mixture = Mixture(SOURCE, [Part("a", repeat=repeat), Part("b")], seed=1)
    assert mixture.counts == {"a": size, "b": 10}
    seen = collections.Counter()
    for number in range(6):
        seen.update(sample for sample in epoch(mixture, number) if sample.startswith("a"))
        times = [seen[sample] for sample in SOURCE["a"]]
        assert sum(times) == size * (number + 1) and max(times) - min(times) <= 1


def test_a_cap_chooses_once_and_by_the_seed():
    def chosen(seed, number):
        return {sample for sample in epoch(Mixture(SOURCE, [Part("a", cap=20), Part("c")], seed), number)}

    assert len(chosen(0, 0)) == 21 and chosen(0, 0) == chosen(0, 5) != chosen(1, 0)
    assert Mixture(SOURCE, [Part("a", cap=1000)], 0).counts == {"a": 100}
    assert Mixture(SOURCE, [Part("a", cap=20, repeat=3)], 0).counts == {"a": 60}


def test_weights_are_shares_of_the_epoch():
    mixture = Mixture(SOURCE, [Part("a", weight=1), Part("b", weight=2), Part("c", weight=1)], seed=0)
    assert len(mixture) == 111 and mixture.counts == {"a": 28, "b": 55, "c": 28}
    counts = collections.Counter(sample[0] for sample in epoch(mixture, 3))
    assert counts == mixture.counts


def test_a_part_keeps_its_passes_when_others_change():
    def of_a(parts):
        return sorted(sample for sample in epoch(Mixture(SOURCE, parts, seed=3)) if sample.startswith("a"))

    assert of_a([Part("a", repeat=0.2)]) == of_a([Part("b"), Part("a", repeat=0.2), Part("c")])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "no parts"),
        ([Part("a"), Part("a")], "names a twice"),
        ([Part("x")], "'x' is no source; choose from a, b, c, empty"),
        ([Part("empty")], "empty has no samples"),
        ([Part("a", weight=1), Part("b")], "some sources a weight, but not b"),
        ([Part("a", repeat=0)], "repeat of a is 0, must be more than 0"),
        ([Part("a", cap=-1)], "cap of a is -1"),
        ([Part("a", weight=float("nan"))], "weight of a is nan"),
    ],
)
def test_mixtures_that_cannot_be(parts, message):
    with pytest.raises(UserError, match=message):
        Mixture(SOURCE | {"empty": []}, parts, seed=0)


def batches(dataset, shards, workers, count, state=None):
    """Ids of the first batches of all shards together, and the state after them."""
    if workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    processes = grain.MultiprocessingOptions(num_workers=workers) if workers else None
    found = [[] for _ in range(count)]
    for shard in range(shards):
        options = grain.sharding.ShardOptions(shard, shards)
        iterator = iter(ElasticIterator(dataset, 12, options, multiprocessing_options=processes))
        if state:
            iterator.set_state(state)
        for number in range(count):
            found[number] += next(iterator)["place"].tolist()
        after = iterator.get_state()
        if workers:
            iterator.close()
    return [sorted(batch) for batch in found], after


def number(sample):
    return {"place": 1000 * list(SOURCES).index(sample.source) + len(sample.turns[0][1])}


def test_shards_workers_and_positions_do_not_change_what_is_seen(tmp_path):
    sources = open_sources(write_demo(tmp_path / "root"))
    assert grain.MapDataset.source(sources["gllava_qa"])[4] == sources["gllava_qa"][0]  # four samples
    dataset = Mixture(sources, [Part(name) for name in SOURCES], seed=5).repeat().map(number)
    whole, _ = batches(dataset, shards=1, workers=0, count=8)
    assert batches(dataset, shards=2, workers=0, count=8)[0] == whole
    first, state = batches(dataset, shards=2, workers=0, count=3)
    assert first == whole[:3]
    rest, _ = batches(dataset, shards=1, workers=1, count=5, state=state)
    assert rest == whole[3:]
