"""Batches of a run's data, over the devices."""

import dataclasses
import functools
import time

from trol_jax.data import easy_vqa, packing, pipeline
from trol_jax.data.tokenizer import Tokenizer
from trol_jax.errors import UserError
from trol_jax.sharding import hosts
from trol_jax.train.config import RunConfig
from trol_jax.train.program import Program


class Feed:
    """Yields dicts of global arrays without end, see `pipeline.train_iterator`; this process reads the rows of its own
    devices. Close it, or use `with`.

    rows: of a batch. held_out: of what is never trained on: the test split of easy-vqa, or what `data.held_out` keeps
    of a mixture; the same each time. waited: seconds for which `next` had to wait, until now.
    """

    def __init__(self, config: RunConfig, tokenizer: Tokenizer, program: Program, rows: int, held_out: bool = False):
        self.rows, self.over_devices, self.waited = rows, program.over_devices, 0.0
        shares, share = hosts.row_shares(self.over_devices, rows)
        self.own, options, sizes = shares[share], config.data, program.model.config
        if isinstance(options, packing.MixtureOptions):
            iterate = functools.partial(packing.train_iterator, held_out=held_out)
        else:
            source = easy_vqa.EasyVQA("test" if held_out else "train", options.root or None)
            iterate = functools.partial(pipeline.train_iterator, source)
            options = dataclasses.replace(options, augment=(), workers=0) if held_out else options
        self.inner = iterate(
            options, tokenizer, image_size=sizes.vision.image_size, image_tokens=sizes.image_tokens,
            batch_size=rows, seed=0 if held_out else config.seed, shares=shares, share=share,
        )  # fmt: skip
        self.get_state, self.set_state, self.close = self.inner.get_state, self.inner.set_state, self.inner.close

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> dict:
        began = time.monotonic()
        batch = next(self.inner)
        self.waited += time.monotonic() - began
        return hosts.global_batch(batch, self.over_devices, self.rows, self.own)

    def metrics(self) -> dict[str, float]:
        """Of a mixture: what was seen of each source, and the part of the rows that is padding. As `compare_hosts`."""
        self.compare_hosts()
        return self.inner.shares_so_far() if isinstance(self.inner, packing.Packer) else {}

    def compare_hosts(self) -> None:
        """UserError if the processes do not pack the same rows: a file is bad or missing for one of them alone.

        Every process must ask.
        """
        if isinstance(self.inner, packing.Packer) and not hosts.agree(self.inner.position()):
            raise UserError(
                "the processes do not read the same samples: one of them leaves out what others can use; their outputs "
                "name it, as does launch.check_data on each machine; make the data the same, then start again"
            )

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_) -> None:
        self.close()
