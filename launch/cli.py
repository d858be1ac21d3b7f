"""What every program of this folder does around its job."""

import _thread
import errno
import os
import platform
import signal
import sys
import threading

from absl import app, flags, logging

from trol_jax.errors import CAUGHT

REQUIRED = []  # flags that may not be empty either


def run(main, required: list[str], arguments: bool = False) -> None:
    """absl's app.run, with bad input (flags, config keys, UserError) reported in one line and exit status 2.

    arguments: whether the program takes any beside flags.
    """
    logging.set_verbosity(logging.WARNING)  # JAX tells of every backend that it did not find
    for name, mode, errors in (
        ("stdin", "r", "surrogateescape"),
        ("stdout", "w", "backslashreplace"),
        ("stderr", "w", None),
    ):
        if getattr(sys, name) is None:  # closed
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
        getattr(sys, name).reconfigure(errors=errors)
    flags.mark_flags_as_required(required)
    REQUIRED.extend(required)
    app.run(lambda argv: guarded(main, argv, arguments), flags_parser=parse)


def keep_compiled() -> None:
    """Programs compiled once are found again by the next process of this machine; JAX_COMPILATION_CACHE_DIR says where,
    or the user's cache folder.
    """
    import jax

    if not jax.config.jax_compilation_cache_dir:
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(caches, "trol_jax", platform.node()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def parse(argv):
    try:
        rest = flags.FLAGS(argv)
        if empty := [f"--{name}" for name in REQUIRED if flags.FLAGS[name].value == ""]:
            fail(f"{empty[0]} is empty; give it a value")
        for name in flags.FLAGS:
            getattr(flags.FLAGS[name].value, "keys", None)  # only this makes ml_collections tell of a missing file
        return rest
    except BrokenPipeError:
        gone()
    except Exception as error:  # a config file is a program, and may fail in any way
        while error.args and isinstance(error.args[0], Exception):  # ml_collections: AttributeError(KeyError(message))
            error = error.args[0]
        hint = ""
        if "is of original type" in str(error):
            hint = "; give a setting another kind of value, as a table of rules, `with config.ignore_type():`"
        fail(unknown(str(error.args[0]), argv) if isinstance(error, KeyError) else f"{error}{hint}")


def unknown(said: str, argv) -> str:
    """ml_collections' message of a setting that is not there, `'name' Did you mean ...?`, with the whole flag."""
    name, _, hint = said.removeprefix("'").partition("'")
    flag = next((each.partition("=")[0] for each in argv if name in each.partition("=")[0].split(".")), None)
    return f"{flag} is no setting of --config.{hint}" if flag else said


def guarded(main, argv, arguments: bool):
    from trol_jax import checkpoint, errors  # noqa: F401  (nothing is to be cleaned up yet if a signal ends the import)

    listen()
    if len(argv) > 1 and not arguments:
        fail(f"unexpected arguments {' '.join(argv[1:])}: flags are written --name=value")
    try:
        main(argv)
    except errors.UserError as error:
        fail(error, error.status)
    except BrokenPipeError:
        gone()
    except KeyboardInterrupt as error:
        end(*error.args)
    except Exception as error:
        if CAUGHT:  # what it fell into made something else of it
            end(CAUGHT[-1])
        if isinstance(error, OSError) and error.filename and error.strerror:
            fail(f"{error.filename}: {error.strerror}")
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            gone(f"error: the output cannot be written: {error.strerror}", 2)
        raise


def gone(message: str = "", status: int = 141):
    """Who read the output has gone, or it can take no more."""
    if message:
        print(message, file=sys.stderr)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


# ---------------------------------------------------------------------- signals
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while programs are imported, which cannot be interrupted in Python


def listen() -> None:
    """From now on SIGINT and SIGTERM raise KeyboardInterrupt: what an interrupt cleans up is cleaned up."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, caught)
    signal.signal(signal.SIGTERM, caught)
    sys.unraisablehook = again


def caught(number, frame):
    CAUGHT.append(number)
    raise KeyboardInterrupt(number)


def again(lost):
    """An exception that Python has to ignore, as in a callback of its garbage collector; signals are sent once more."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        threading.Timer(0.05, _thread.interrupt_main, lost.exc_value.args).start()
    else:
        sys.__unraisablehook__(lost)


def end(number: int = signal.SIGINT):
    print("error: terminated" if number == signal.SIGTERM else "error: interrupted", file=sys.stderr, flush=True)
    os._exit(128 + number)  # all is cleaned up; a compilation that goes on would crash in an ordinary exit


def fail(message, status: int = 2):
    from trol_jax.errors import one_line

    before, trace, after = str(message).partition("Traceback")  # ml_collections quotes that of a failing config file
    message = before + after.strip().splitlines()[-1] if trace else message
    print(f"error: {one_line(message)}", file=sys.stderr)
    if (jax := sys.modules.get("jax")) and jax.distributed.is_initialized():
        sys.stderr.flush()
        os._exit(status)  # an ordinary exit would wait for the other processes, and they for this one
    sys.exit(status)
