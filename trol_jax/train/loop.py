"""The training loop: all of its input and output, to be read from top to bottom."""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import signal
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from trol_jax import checkpoint, manifest, saved, typed
from trol_jax.data import easy_vqa, pipeline
from trol_jax.data.prompts import FORMATS
from trol_jax.data.tokenizer import train_tokenizer
from trol_jax.errors import UserError
from trol_jax.models.trol import TroL, abstract_params, init_params
from trol_jax.models.variants import VARIANTS, get_variant
from trol_jax.sharding import hosts
from trol_jax.sharding.rules import Layout
from trol_jax.train import config as config_lib
from trol_jax.train import parameters
from trol_jax.train.metrics import Metrics, Silent, flat, is_finite
from trol_jax.train.optimizer import make_optimizer, make_schedule
from trol_jax.train.step import init_state, make_train_step


def train(config: config_lib.RunConfig, workdir: str | os.PathLike) -> int:
    """Train to `config.steps`, or go on from the newest checkpoint under `workdir`. Returns the steps done.

    On SIGTERM it saves and returns early. UserError for bad settings, bad data, a damaged checkpoint, a full disk and a
    loss that is not finite.
    """
    workdir = pathlib.Path(workdir)
    settings = typed.to_dict(config)

    # ------------------------------------------------------------------ data, tokeniser, model
    layout = Layout.make(config.mesh, config.rules)
    over_devices = layout.batch(config.batch_size // config.accumulation)  # of a micro-batch
    shares, share = hosts.row_shares(over_devices, config.batch_size)
    tell = print if hosts.is_first() else lambda _: None
    source = easy_vqa.EasyVQA("train", config.data.root or None)
    begun = bool(checkpoint.steps_in(workdir / checkpoint.CHECKPOINTS))
    if begun:
        newest = checkpoint.resolve(workdir)
        this = saved.read(newest)
        require_same_settings(this.settings, config, workdir)
    elif config.start_from:
        with about_start_from():
            origin = checkpoint.resolve(config.start_from)
            require_finished(origin, config.start_from)
            this = starting_point(origin, config.model)
    else:
        tokenizer = train_tokenizer(source.texts(), FORMATS[get_variant(config.model.variant).family])
        this = saved.Saved(config_lib.model_config(config.model, tokenizer.vocab_size, tokenizer.image_id), tokenizer)
    if config.start_from and not begun and not parameters.all_trained(config.parameters):
        this = dataclasses.replace(this, base=saved.Base.of(origin))
    sizes, tokenizer = this.model, this.tokenizer
    dtype = jnp.dtype(config.dtype)
    model = TroL(sizes, dtype, config.scan, config.remat, layout=layout)
    schedule = make_schedule(config.optimizer, config.steps)
    optimizer = make_optimizer(config.optimizer, schedule)

    # ------------------------------------------------------------------ shapes first, then shardings, then arrays
    shapes = flatten_dict(nn.unbox(abstract_params(model)), sep="/")
    treatments = parameters.treatments(config.parameters, list(shapes))
    tell(parameters.report(config.parameters, shapes, config.lora))

    def init():
        """(state, frozen parameters), boxed with their logical axis names."""
        rng = jax.random.key(config.seed)
        trained, frozen = parameters.split(init_params(model, rng), treatments, config.lora, dtype, rng)
        return init_state(trained, optimizer), frozen

    boxed = jax.eval_shape(init)
    state_shardings, frozen_shardings = layout.shardings(boxed)
    abstract_state, abstract_frozen = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        nn.unbox(boxed), (state_shardings, frozen_shardings),
    )  # fmt: skip
    train_step = jax.jit(
        make_train_step(
            model,
            optimizer,
            schedule,
            objective=config.objective,
            seed=config.seed,
            accumulation=config.accumulation,
            join=parameters.joiner(config.lora),
            place=functools.partial(layout.place, boxed=boxed[0].params),
        ),
        in_shardings=(state_shardings, frozen_shardings, over_devices),
        out_shardings=(state_shardings, layout.everywhere),
        donate_argnums=0,
    )

    with hosts.explained(), contextlib.ExitStack() as stack:
        # -------------------------------------------------------------- start, or go on; nothing is written before
        batches = pipeline.train_iterator(
            source, tokenizer, tokenizer.format, config.data, image_size=sizes.vision.image_size,
            image_tokens=sizes.image_tokens, batch_size=config.batch_size, seed=config.seed, shares=shares, share=share,
        )  # fmt: skip
        stack.callback(batches.close)
        if begun:
            step, state, data_state, _ = checkpoint.restore(newest, abstract_state)
            if step >= config.steps:
                tell(f"already trained to step {step}; remove {workdir} to start anew")
                return step
            batches.set_state(data_state)
            tell(f"going on from step {step} of {config.steps}")
        elif config.start_from:
            with about_start_from():
                trained = parameters.load(
                    origin, shapes, treatments, config.lora, abstract_state.params, seed=config.seed
                )
            start = jax.jit(
                lambda params: init_state(params, optimizer), out_shardings=state_shardings, donate_argnums=0
            )
            step, state = 0, start(trained)
        else:
            step, state = 0, jax.jit(lambda: nn.unbox(init()[0]), out_shardings=state_shardings)()
        with about_start_from():
            frozen = parameters.load_frozen(this.base and this.base.find(), treatments, abstract_frozen, dtype)
        checkpoints = stack.enter_context(checkpoint.Checkpoints(workdir / checkpoint.CHECKPOINTS, keep=config.keep))
        kept = Metrics if hosts.is_first() else Silent
        metrics = stack.enter_context(kept(workdir, start_step=step, total_steps=config.steps))
        stop = stack.enter_context(sigterm_flag())
        save = functools.partial(checkpoints.save, config=settings, files=this.files())

        # -------------------------------------------------------------- the loop
        stack.enter_context(jax.transfer_guard("disallow"))  # only explicit transfers: none slips into the hot path
        pending, last_saved, began = None, step, time.monotonic()
        while step < config.steps and not stop:
            if hosts.told_to_stop(step):
                stop.append(signal.SIGTERM)
                break
            batch = hosts.global_batch(next(batches), over_devices, config.batch_size, shares[share])
            state, values = train_step(state, frozen, batch)
            step += 1
            # The values of the step before are looked at while this one runs, so the device never waits for the host.
            if pending is not None:
                require_finite(*pending, checkpoints)
            pending = step, values
            metrics.advance()
            if step % config.log_every == 0 or step == config.steps:
                values = require_finite(*pending, checkpoints)
                rate = (step - metrics.last_step) * config.batch_size / (time.monotonic() - began)
                metrics.write(step, values | {"examples_per_second": rate})
                began = time.monotonic()
            if step % config.checkpoint_every == 0:
                require_finite(*pending, checkpoints)
                save(step, state, data_state=batches.get_state())
                last_saved = step
        if last_saved < step:
            require_finite(*pending, checkpoints)
            save(step, state, data_state=batches.get_state())
        checkpoints.wait()
    if stop:
        tell(f"stopped by SIGTERM after step {step} of {config.steps}; saved: the same command goes on from here")
    return step


def require_finished(origin: pathlib.Path, path: str) -> None:
    """A run that is named as a whole must be at its end; a step of it may be named at any time."""
    settings, step = saved.read_settings(origin), manifest.read(origin)["step"]
    if settings is not None and step < settings.steps and origin != pathlib.Path(path).absolute():
        raise UserError(f"{path} is at step {step} of {settings.steps}; let it finish, or name {origin} to start there")


def starting_point(path: pathlib.Path, options: config_lib.ModelOptions) -> saved.Saved:
    """Model and tokeniser of another run, or of converted weights, with this run's own gates and passes."""
    origin = saved.read(path)
    if origin.tokenizer is None:
        raise UserError(f"{path} has no tokeniser; convert a folder that has one")
    if origin.model.name in VARIANTS and origin.model.name != options.variant:
        raise UserError(f"{path} is a {origin.model.name}, and config.model.variant is {options.variant}")
    model = dataclasses.replace(origin.model, shared_gate=options.shared_gate, passes=options.passes)
    return dataclasses.replace(origin, model=model)


def require_same_settings(
    stored: config_lib.RunConfig | None, config: config_lib.RunConfig, workdir: pathlib.Path
) -> None:
    if stored is None:
        raise UserError(f"{workdir} holds converted weights, not a run; name them by config.start_from instead")
    if changed := config_lib.differences(stored, config):
        raise UserError(
            f"{workdir} holds a run with other settings ({'; '.join(changed)}); "
            f"use another --workdir, or remove {workdir} to start anew"
        )


@contextlib.contextmanager
def about_start_from():
    try:
        yield
    except UserError as error:
        raise UserError(f"config.start_from: {error}") from error


def require_finite(step: int, values: dict[str, jax.Array], checkpoints: checkpoint.Checkpoints) -> dict:
    """The metrics of a step, on the host, each a number or a list. UserError unless all are finite."""
    values = {name: value.tolist() for name, value in jax.device_get(values).items()}
    if is_finite(values):
        return values
    checkpoints.wait()
    last = checkpoints.latest_step()
    good = (
        f"the last good checkpoint is {checkpoints.directory / str(last)}" if last is not None else "none was saved yet"
    )
    bad = ", ".join(name for name, value in flat(values).items() if not math.isfinite(value))
    what = ", ".join(f"{name} {values[name]}" for name in ("loss", "grad_norm", "lr"))
    raise UserError(
        f"not finite at step {step}: {bad} ({what}); {good}; lower optimizer.lr or optimizer.clip, then start again"
    )


@contextlib.contextmanager
def sigterm_flag():
    """A list that is empty until SIGTERM arrives; the step under way is finished first."""
    received = []
    if jax.process_count() > 1:  # JAX tells all of them, see `hosts.told_to_stop`
        yield received
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)
