"""A web page to ask about pictures and to see what the model looks at twice.

    python -m launch.demo --checkpoint=runs/quickstart [--checkpoint=...]

then open the address that it prints. Stop it with ctrl-c.
"""

import contextlib

from absl import flags

from launch import cli

CHECKPOINT = flags.DEFINE_multi_string(
    "checkpoint", None, "A run, its checkpoints or one step; several to choose from."
)
HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to listen at: this machine alone; 0.0.0.0 = any that reaches it."
)
PORT = flags.DEFINE_integer("port", 7860, "Port to listen at, 0 = any that is free.", lower_bound=0, upper_bound=65535)
SLOTS = flags.DEFINE_integer("slots", 8, "Questions answered at a time, of each checkpoint.", lower_bound=1)
LENGTH = flags.DEFINE_integer(
    "length", 4096, "Tokens of a question with its pictures and answer at most.", lower_bound=1
)
QUEUE = flags.DEFINE_integer("queue", 64, "Questions that may wait; more are turned away.", lower_bound=1)
MAX_UPLOAD_MB = flags.DEFINE_integer("max_upload_mb", 20, "Size of a picture file at most.", lower_bound=1)


def main(_):
    from trol_jax.errors import UserError
    from trol_jax.serve import models

    try:
        import fastapi

        from trol_jax.serve import page, web
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing; pip install -r requirements-serve.txt") from None

    cli.keep_compiled()
    with web.listen(HOST.value, PORT.value) as opened, contextlib.ExitStack() as stack:
        served = models.load(CHECKPOINT.value, SLOTS.value, LENGTH.value, QUEUE.value)
        for one in served.values():
            stack.callback(one.server.close)
        app = fastapi.FastAPI(openapi_url=None)
        # Other routes of this process go here, before the page, which takes every path that is left.
        page.mount(app, page.page(served), queue=QUEUE.value, max_upload_mb=MAX_UPLOAD_MB.value)
        print(f"open {web.address(opened)} (ctrl-c stops)", flush=True)
        web.Server(app).serve_at(opened)


if __name__ == "__main__":
    cli.run(main, required=["checkpoint"])
