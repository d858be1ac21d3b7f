"""Flags of programs that may run as several processes, one a host (or a GPU), and compute as one."""

import os
import socket
import sys
import threading

from absl import flags

DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes, which SLURM, Open MPI, a TPU slice or GKE describes to each."
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "Where no such system does: HOST:PORT of process 0, free there.")
COUNT = flags.DEFINE_integer("num_processes", None, "With --coordinator: how many there are.", lower_bound=1)
INDEX = flags.DEFINE_integer("process_id", None, "With --coordinator: which of them this is.", lower_bound=0)
WAIT = flags.DEFINE_integer("connect_seconds", 300, "How long they wait for each other at the start.", lower_bound=1)


def connect(finish_step: bool = False) -> None:
    """To be called before JAX looks for devices. UserError when not all are there in time.

    finish_step: a SIGTERM to one of them is told to all, see `hosts.told_to_stop`; otherwise it ends the one.
    """
    from trol_jax.errors import UserError

    named = {"--coordinator": COORDINATOR.value, "--num_processes": COUNT.value, "--process_id": INDEX.value}
    if missing := [name for name, value in named.items() if value is None]:
        if len(missing) < len(named):
            raise UserError(f"{', '.join(missing)} must be given too, to be one of several processes")
        if not DISTRIBUTED.value:
            return
        named = {}
    elif INDEX.value >= COUNT.value:
        raise UserError(f"--process_id is {INDEX.value}, must be below --num_processes={COUNT.value}")
    host, _, port = (COORDINATOR.value or "host:1").rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise UserError(f"--coordinator is {COORDINATOR.value!r}, must be HOST:PORT of process 0")

    if INDEX.value == 0:
        require_free(int(port))

    import jax

    jax.config.update("jax_enable_preemption_service", finish_step)  # which takes SIGTERM for itself
    # JAX ends a process whose connection fails from its own depths, with pages of traces: this timer comes first.
    timer = threading.Timer(WAIT.value, not_met)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            COORDINATOR.value, COUNT.value, INDEX.value,
            initialization_timeout=WAIT.value + 60, shutdown_timeout_seconds=60,
        )  # fmt: skip
    except ValueError as error:  # nothing was found that describes them
        raise UserError(
            f"--distributed: neither SLURM nor Open MPI, a TPU slice or GKE has started this process ({error}); "
            "give --coordinator, --num_processes and --process_id"
        ) from error
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        raise UserError(f"cannot join the other processes: {error}") from error
    finally:
        timer.cancel()


def require_free(port: int) -> None:
    """UserError for a port that another program has; JAX ends in a segmentation fault there."""
    from trol_jax.errors import UserError

    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=family == socket.AF_INET6).close()
    except OSError as error:
        reason = os.strerror(error.errno)  # its own words repeat the address
        raise UserError(
            f"--coordinator={COORDINATOR.value}: process 0 cannot take port {port} here ({reason}); choose one that is "
            "free, the same for all"
        ) from error


def leave() -> None:
    """The end of what several processes did: all wait for each other, so that none finds the others gone."""
    import jax

    if jax.process_count() > 1:
        jax.distributed.shutdown()


def not_met() -> None:
    which = "" if COORDINATOR.value is None else f" {COUNT.value} processes at {COORDINATOR.value}"
    print(
        f"error: not all{which or ' processes'} have met within {WAIT.value} s (--connect_seconds); check that all "
        "were started with the same --coordinator and --num_processes and can reach that host and port",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    os._exit(2)
