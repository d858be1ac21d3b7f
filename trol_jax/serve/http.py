"""From an app to a process that listens, and ends well."""

import asyncio
import logging
import signal
import socket

import uvicorn
from fastapi import FastAPI

from trol_jax.errors import UserError
from trol_jax.serve.models import Served

GRACE = 5  # seconds that answers may still take when the process is told to end


def listen(host: str, port: int) -> socket.socket:
    """port: 0 = any that is free. UserError if it is in use, or the host is not this one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
        raise UserError(f"cannot listen on {host} port {port} (--host, --port): {reason}") from None


def url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def run(app: FastAPI, served: dict[str, Served], listener: socket.socket) -> None:
    """Until the process gets SIGINT or SIGTERM; closes the servers."""
    server = Server(app, served)
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # before uvicorn listens to them; in the end it hands them on to this
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    server.run(sockets=[listener])


class Server(uvicorn.Server):
    """Serves until it gets a signal, or until `should_exit` is set."""

    def __init__(self, app: FastAPI, served: dict[str, Served]):
        super().__init__(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1))
        self.served = served

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers have their time, then they end with an error; pages that are still open are left."""
        for each in [*self.servers, *(sockets or [])]:
            each.close()
        for _ in range(10 * GRACE):
            if not any(any(one.server.load) for one in self.served.values()):
                break
            await asyncio.sleep(0.1)
        for one in self.served.values():
            await asyncio.to_thread(one.server.close)
        log = logging.getLogger("uvicorn.error")
        log.disabled = True  # it would tell of open pages
        await super().shutdown(sockets)
        log.disabled = False
