"""Where an app is served, and how that ends."""

import contextlib
import logging
import socket

import fastapi
import uvicorn

from trol_jax.errors import UserError


def listen(host: str, port: int) -> socket.socket:
    """An open socket; port 0: any that is free. UserError if the port is taken or the host is not of this machine."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        why = error.strerror.partition(" (")[0]
        raise UserError(f"cannot listen at {host}:{port}: {why}; choose another --host or --port") from None


def address(opened: socket.socket) -> str:
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Serves an app until ctrl-c, or until `should_exit` is set."""

    def __init__(self, app: fastapi.FastAPI):
        super().__init__(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))

    def serve_at(self, opened: socket.socket) -> None:
        with contextlib.suppress(KeyboardInterrupt):  # raised again after all has ended well
            self.run(sockets=[opened])

    async def shutdown(self, sockets=None) -> None:
        """Pages that are still open are left, which uvicorn would tell as an error with its traceback."""
        log = logging.getLogger("uvicorn.error")
        log.disabled = True
        await super().shutdown(sockets)
        log.disabled = False
