"""The training loop: all of its input and output, to be read from top to bottom."""

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable

import jax

from trol_jax import checkpoint, manifest, saved, typed
from trol_jax.data import easy_vqa
from trol_jax.data.prompts import FORMATS
from trol_jax.data.tokenizer import train_tokenizer
from trol_jax.errors import UserError
from trol_jax.models.variants import VARIANTS, get_variant
from trol_jax.retry import WAITS
from trol_jax.sharding import hosts
from trol_jax.sharding.rules import Layout
from trol_jax.train import config as config_lib
from trol_jax.train import parameters, watch
from trol_jax.train.evaluation import Evaluation, Interrupted, keep_best
from trol_jax.train.feed import Feed
from trol_jax.train.guard import Guard
from trol_jax.train.metrics import Metrics, Silent
from trol_jax.train.program import Program


def train(config: config_lib.RunConfig, workdir: str | os.PathLike, profile_steps: tuple[int, ...] = ()) -> bool:
    """Train to `config.steps`, or go on from the newest sound checkpoint under `workdir`. Returns whether all is done.

    On SIGTERM, or when the cloud takes the machine away, it saves and returns early. profile_steps: the first and the
    last of those whose times are recorded. UserError for bad settings, bad data and a full disk; Diverged when a loss
    is not finite or too many steps had to be left out.
    """
    workdir = pathlib.Path(workdir)
    settings = typed.to_dict(config)

    # ------------------------------------------------------------------ data, tokeniser, model
    layout = Layout.make(config.mesh, config.rules)
    first = hosts.is_first()
    tell = print if first else lambda _: None
    damaged = {}
    begun = bool(checkpoint.steps_in(workdir / checkpoint.CHECKPOINTS))
    if begun:
        newest, damaged = checkpoint.newest_sound(workdir / checkpoint.CHECKPOINTS)
        for path, problems in damaged.items():
            tell(f"checkpoint {path} is damaged and is left alone until its step is saved again: {problems[0]}")
        newest = newest or checkpoint.resolve(workdir)  # whose reading will tell that none is sound
        this = saved.read(newest)
        with about_start_from():
            this = where_its_base_is(this, config.start_from)
        require_same_settings(this.settings, config, workdir)
    elif config.start_from:
        with about_start_from():
            origin = checkpoint.resolve(config.start_from)
            require_finished(origin, config.start_from)
            this = starting_point(origin, config.model)
    else:
        source = easy_vqa.EasyVQA("train", config.data.root or None)
        tokenizer = train_tokenizer(source.texts(), FORMATS[get_variant(config.model.variant).family])
        this = saved.Saved(config_lib.model_config(config.model, tokenizer.vocab_size, tokenizer.image_id), tokenizer)
    if config.start_from and not begun and not parameters.all_trained(config.parameters):
        this = dataclasses.replace(this, base=saved.Base.of(origin))
    sizes, tokenizer = this.model, this.tokenizer

    # ------------------------------------------------------------------ shapes and shardings first, then arrays
    program = Program(config, sizes, layout)
    tell(parameters.report(config.parameters, program.shapes, config.lora))
    if config.optimizer.warmup > config.steps:  # as in a trial
        tell(f"optimizer.warmup is {config.optimizer.warmup}, and after {config.steps} steps the rate is not yet lr")
    evaluation = Evaluation(config, workdir, program, tokenizer, tell)
    evaluation.check()

    with hosts.explained(), contextlib.ExitStack() as stack:
        # -------------------------------------------------------------- start, or go on; nothing is written before
        batches = stack.enter_context(Feed(config, tokenizer, program, config.batch_size))
        if begun:
            step, state, data_state, _ = checkpoint.restore(newest, program.state)
            if step >= config.steps and not evaluation.left(step):
                tell(f"already trained to step {step}; remove {workdir} to start anew")
                return True
            batches.set_state(data_state)
            tell(f"going on from step {step} of {config.steps}")
        elif config.start_from:
            with about_start_from():
                how = program.shapes, program.treatments, config.lora, program.state.params
                step, state = 0, program.start(parameters.load(origin, *how, seed=config.seed))
        else:
            step, state = 0, program.fresh()
        with about_start_from():
            base = this.base and (this.base.find_sound() if begun else this.base.find())  # `load` verified it
            frozen = parameters.load_frozen(base, program.treatments, program.frozen, program.dtype)
        kept = dict(keep=config.keep, damaged=[int(path.name) for path in damaged])
        checkpoints = stack.enter_context(checkpoint.Checkpoints(workdir / checkpoint.CHECKPOINTS, **kept))
        heart = stack.enter_context((watch.Heartbeat if first else watch.Silent)(workdir, step, config.steps))
        metrics = stack.enter_context(
            (Metrics if first else Silent)(workdir, step, config.steps, config.wandb, settings)
        )
        guard = Guard(config.optimizer.skips, checkpoints, metrics.tell)
        stop = stack.enter_context(watch.told_to_stop())
        profile = stack.enter_context(watch.Profile(workdir, profile_steps))

        def save() -> None:
            guard.now()
            heart.beat("saving", step)
            files = dict(data_state=batches.get_state(), config=settings, files=this.files())
            checkpoints.save(step, state, **files)

        def settle() -> None:
            save()
            checkpoints.wait()

        def look() -> None:
            heart.beat("evaluating", step)
            if stop:
                raise Interrupted

        def evaluate() -> None:
            patient(checkpoints.wait, again=settle, tell=metrics.tell)
            heart.beat("evaluating", step)
            try:
                with jax.transfer_guard("allow"):
                    values = evaluation(checkpoints.directory / str(step), state.params, frozen, look)
            except Interrupted:  # the same command does it again
                return
            keep_best(config.evaluation.best, step, values, checkpoints)
            metrics.write(step, values)

        # -------------------------------------------------------------- the loop
        if begun and evaluation.left(step):  # it was ended in the middle of it
            evaluate()
        stack.enter_context(jax.transfer_guard("disallow"))  # only explicit transfers: none slips into the hot path
        last_saved, began = step, time.monotonic()
        while step < config.steps and not stop:
            if hosts.told_to_stop(step):
                stop.append("SIGTERM")
                break
            batch = next(batches)
            profile.before(step + 1)
            state, values = program.step(state, frozen, batch)
            step += 1
            guard.next(step, values)
            profile.after(step, values)
            metrics.advance()
            heart.beat("training", step)
            if step % config.log_every == 0 or step == config.steps:
                values, seconds = guard.now(), time.monotonic() - began
                rate = (step - metrics.last_step) * config.batch_size / seconds
                values |= {"examples_per_second": rate, "data/waited": batches.waited / seconds}  # a part of the time
                metrics.write(step, values | batches.metrics())
                began, batches.waited = time.monotonic(), 0.0
            if step % config.checkpoint_every == 0 or evaluation.due(step) or checkpoints.failed():
                patient(save, again=save, tell=metrics.tell)
                last_saved = step
            if evaluation.due(step):
                evaluate()
                began, batches.waited = time.monotonic(), 0.0
        if last_saved < step:
            patient(save, again=save, tell=metrics.tell)
        patient(checkpoints.wait, again=settle, tell=metrics.tell)
        complete = step == config.steps and not (stop and evaluation.left(step))
        if complete:
            heart.beat("done", step)
    if stop:
        tell(f"stopped by {stop[0]} after step {step} of {config.steps}; saved: the same command goes on from here")
    return complete


def patient(call: Callable[[], None], again: Callable[[], None], tell: Callable[[str], None]) -> None:
    """call(); where a disk was away for a moment, `again` after a while."""
    for wait in WAITS:
        try:
            return call()
        except checkpoint.NotSaved as error:
            if not error.passing:
                raise
            tell(f"{error}; trying again in {wait} s")
            time.sleep(wait)
            call = again
    call()


def require_finished(origin: pathlib.Path, path: str) -> None:
    """A run that is named as a whole must be at its end; a step of it may be named at any time."""
    settings, step = saved.read_settings(origin), manifest.read(origin)["step"]
    if settings is not None and step < settings.steps and origin != pathlib.Path(path).absolute():
        raise UserError(f"{path} is at step {step} of {settings.steps}; let it finish, or name {origin}")


def starting_point(path: pathlib.Path, options: config_lib.ModelOptions) -> saved.Saved:
    """Model and tokeniser of another run, or of converted weights, with this run's own gates and passes."""
    origin = saved.read_whole(path)
    if origin.tokenizer is None:
        raise UserError(f"{path} has no tokeniser; convert a folder that has one")
    if origin.model.name in VARIANTS and origin.model.name != options.variant:
        raise UserError(f"{path} is a {origin.model.name}, and config.model.variant is {options.variant}")
    return dataclasses.replace(origin, model=config_lib.with_options(origin.model, options))


def where_its_base_is(this: saved.Saved, start_from: str) -> saved.Saved:
    """A base that was moved is known by its content: start_from may name another place where that is."""
    if this.base is None or start_from == this.settings.start_from:
        return this
    base = saved.Base.of(checkpoint.resolve(start_from))
    if base.identity != this.base.identity:
        return this
    return dataclasses.replace(this, base=base, settings=dataclasses.replace(this.settings, start_from=start_from))


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
