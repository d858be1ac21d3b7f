"""Answer over HTTP, as OpenAI's chat completions: python -m launch.serve --checkpoint=runs/quickstart [--port=8000]

trol_jax/serve/openai.py says what requests may hold. Clients must send TROL_API_KEY, if the environment has it.
"""

import os

from absl import flags

from launch import cli, model

CHECKPOINT = flags.DEFINE_multi_string(
    "checkpoint", None, "A run, its checkpoints or one step; may be given several times."
)
HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 = all of this machine.")
PORT = flags.DEFINE_integer("port", 8000, "Port to listen on; 0 = any that is free.", lower_bound=0, upper_bound=65535)
SLOTS = flags.DEFINE_integer("slots", 8, "Answers at a time, of each checkpoint.", lower_bound=1)
LENGTH = flags.DEFINE_integer("length", 4096, "Tokens of a prompt with its answer at most.", lower_bound=16)
QUEUE = flags.DEFINE_integer("queue", 256, "Requests that may wait for a slot, of each checkpoint.", lower_bound=0)
MAX_BODY_MB = flags.DEFINE_integer("max_body_mb", 32, "Size of a request or picture at most.", lower_bound=1)


def main(_, page: bool = False):
    from trol_jax.errors import UserError

    if not HOST.value:
        raise UserError("--host is empty; name an address to listen on")
    if not all(CHECKPOINT.value):
        raise UserError("--checkpoint is empty; name a run")
    try:
        from trol_jax.serve import api, http, models

        if page:
            from trol_jax.serve import page
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install -r requirements-serve.txt") from None
    key = os.environ.get("TROL_API_KEY", "")
    with http.listen(HOST.value, PORT.value) as listener:
        cli.keep_compiled()
        options = model.options() | {"layout": model.layout()}
        served = models.load(CHECKPOINT.value, SLOTS.value, LENGTH.value, QUEUE.value, **options)
        app = api.app(served, MAX_BODY_MB.value * 2**20, key)
        if page:
            page.mount(app, page.page(served), queue=QUEUE.value, max_upload_mb=MAX_BODY_MB.value, key=key)
        print(f"{', '.join(served)} at {http.url(listener)}{'' if page else '/v1'}", flush=True)
        http.run(app, served, listener)


if __name__ == "__main__":
    cli.run(main, required=["checkpoint"])
