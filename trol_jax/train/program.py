"""A run as it is compiled: of its settings and the sizes of its model come shapes, shardings and the step."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from trol_jax.models.trol import TroL, abstract_params, init_params
from trol_jax.models.variants import ModelConfig
from trol_jax.sharding.flash import attend
from trol_jax.sharding.rules import Layout
from trol_jax.train import parameters
from trol_jax.train.config import RunConfig
from trol_jax.train.optimizer import make_optimizer, make_schedule, require_used
from trol_jax.train.step import TrainState, init_state, make_train_step


class Program:
    """No array is made here but by `fresh` and `start`.

    shapes: of all parameters, flat, by name; treatments: what becomes of each. state, frozen: shapes with shardings of
    what a step takes; over_devices: the sharding of its batch. step: (state, frozen, batch) -> (state, metrics), with
    the state donated. UserError for settings that do not fit the model.
    """

    def __init__(self, config: RunConfig, sizes: ModelConfig, layout: Layout):
        self.config, self.dtype = config, jnp.dtype(config.dtype)
        how = dict(layout=layout, attend=attend(config.attention, layout, self.dtype))
        self.model = TroL(sizes, self.dtype, config.scan, config.remat, **how)
        self.over_devices = layout.batch(config.batch_size // config.accumulation)  # of a micro-batch
        schedule = make_schedule(config.optimizer, config.steps)
        self.optimizer = make_optimizer(config.optimizer, schedule)
        self.shapes = flatten_dict(nn.unbox(abstract_params(self.model)), sep="/")
        self.treatments = parameters.treatments(config.parameters, list(self.shapes))
        self.join = parameters.joiner(config.lora)
        boxed = jax.eval_shape(self._init)
        require_used(config.optimizer.rates, list(boxed[0].params))
        self.shardings = layout.shardings(boxed)
        self.state, self.frozen = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            nn.unbox(boxed), self.shardings,
        )  # fmt: skip
        self.function = make_train_step(
            self.model,
            self.optimizer,
            schedule,
            objective=config.objective,
            seed=config.seed,
            z_loss=config.z_loss,
            accumulation=config.accumulation,
            skip_norm=config.optimizer.longest(),
            join=self.join,
            place=functools.partial(layout.place, boxed=boxed[0].params),
        )
        self.step = jax.jit(
            self.function,
            in_shardings=(*self.shardings, self.over_devices),
            out_shardings=(self.shardings[0], layout.everywhere),
            donate_argnums=0,
        )

    def fresh(self) -> TrainState:
        """A state with random parameters, drawn by the seed."""
        return jax.jit(lambda: nn.unbox(self._init()[0]), out_shardings=self.shardings[0])()

    def start(self, trained: dict) -> TrainState:
        """The state that begins with these parameters, which are donated."""
        start = functools.partial(init_state, optimizer=self.optimizer)
        return jax.jit(start, out_shardings=self.shardings[0], donate_argnums=0)(trained)

    def _init(self):
        """(state, frozen parameters), boxed with their logical axis names."""
        rng, config = jax.random.key(self.config.seed), self.config
        params = init_params(self.model, rng)
        trained, frozen = parameters.split(params, self.treatments, config.lora, self.dtype, rng)
        return init_state(trained, self.optimizer), frozen
