"""What every program of this folder does around its job."""

import os
import platform
import signal
import sys

from absl import app, flags, logging

REQUIRED = []  # flags that may not be empty either


def run(main, required: list[str]) -> None:
    """absl's app.run, with bad input (flags, config keys, UserError) reported in one line and exit status 2."""
    logging.set_verbosity(logging.WARNING)  # JAX tells of every backend that it did not find
    signal.signal(signal.SIGTERM, terminated)
    sys.stdin.reconfigure(errors="surrogateescape")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    flags.mark_flags_as_required(required)
    REQUIRED.extend(required)
    app.run(lambda argv: guarded(main, argv), flags_parser=parse)


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
    except Exception as error:  # a config file is a program, and may fail in any way
        while error.args and isinstance(error.args[0], Exception):  # ml_collections: AttributeError(KeyError(message))
            error = error.args[0]
        fail(error.args[0] if isinstance(error, KeyError) else error)  # str of a KeyError is quoted


def guarded(main, argv):
    from trol_jax.errors import UserError

    if len(argv) > 1:
        fail(f"unexpected arguments {' '.join(argv[1:])}: flags are written --name=value")
    try:
        main(argv)
    except UserError as error:
        fail(error)
    except BrokenPipeError:  # who read the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt as error:
        fail("terminated" if error.args else "interrupted", status=143 if error.args else 130)


def terminated(number, frame):
    raise KeyboardInterrupt(number)  # what an interrupt cleans up is cleaned up


def fail(message, status: int = 2):
    before, trace, after = str(message).partition("Traceback")  # ml_collections quotes that of a failing config file
    message = before + after.strip().splitlines()[-1] if trace else message
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(status)
