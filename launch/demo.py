"""A web page to ask about pictures and to see what the model looks at twice, with the HTTP API beside it.

    python -m launch.demo --checkpoint=runs/quickstart [--checkpoint=...]

then open the address that it prints. Flags are those of launch.serve. With TROL_API_KEY in the environment, the page
asks for it as the password of the user `trol`.
"""

import functools

from launch import cli, serve

if __name__ == "__main__":
    cli.run(functools.partial(serve.main, page=True), required=["checkpoint"])
