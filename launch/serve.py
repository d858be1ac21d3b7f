"""Answer over HTTP, as OpenAI's chat completions: python -m launch.serve --checkpoint=runs/quickstart [--port=8000]

trol_jax/serve/openai.py says what requests may hold. Clients must send TROL_API_KEY, if the environment has it.
"""

import os
import signal
import socket

from absl import flags

from launch import cli

CHECKPOINT = flags.DEFINE_multi_string(
    "checkpoint", None, "A run, its checkpoints or one step; may be given several times."
)
HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 = all of this machine.")
PORT = flags.DEFINE_integer("port", 8000, "Port to listen on; 0 = any that is free.", lower_bound=0, upper_bound=65535)
SLOTS = flags.DEFINE_integer("slots", 8, "Answers at a time, of each checkpoint.", lower_bound=1)
LENGTH = flags.DEFINE_integer("length", 4096, "Tokens of a prompt with its answer at most.", lower_bound=16)
QUEUE = flags.DEFINE_integer("queue", 256, "Requests that may wait for a slot, of each checkpoint.", lower_bound=0)
MAX_BODY_MB = flags.DEFINE_integer("max_body_mb", 32, "Size of a request at most.", lower_bound=1)


def main(_):
    from trol_jax.errors import UserError

    if not all(CHECKPOINT.value):
        raise UserError("--checkpoint is empty; name a run")
    with listening() as listener:
        serve(listener)


def serve(listener: socket.socket) -> None:
    from trol_jax.errors import UserError

    try:
        import uvicorn

        from trol_jax.serve import api, models
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install -r requirements-serve.txt") from None
    cli.keep_compiled()
    served = models.load(CHECKPOINT.value, SLOTS.value, LENGTH.value, QUEUE.value)
    app = api.app(served, MAX_BODY_MB.value * 2**20, os.environ.get("TROL_API_KEY", ""))
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn ends well, and then hands the signal on to this
        signal.signal(number, lambda *_: None)
    host, port = listener.getsockname()[:2]
    print(f"{', '.join(served)} at http://{f'[{host}]' if ':' in host else host}:{port}/v1", flush=True)
    options = dict(log_level="warning", access_log=False, timeout_graceful_shutdown=5)
    uvicorn.Server(uvicorn.Config(app, **options)).run(sockets=[listener])
    for one in served.values():
        one.server.close()


def listening() -> socket.socket:
    """Early, so that a port in use is told of before anything is loaded."""
    from trol_jax.errors import UserError

    try:
        return socket.create_server(
            (HOST.value, PORT.value), family=socket.AF_INET6 if ":" in HOST.value else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
        raise UserError(f"cannot listen on {HOST.value} port {PORT.value} (--host, --port): {reason}") from None


if __name__ == "__main__":
    cli.run(main, required=["checkpoint"])
