"""Health and metrics pages of a worker, from a thread of their own: neither scrape nor road waits for the other."""

from __future__ import annotations

import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Without the parent's look-up of the host's full name: it hangs for seconds where no name server answers."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is no event; what else there is, a page would have to explain."""
        log.debug("page asked for by %s", client_address, exc_info=True)


class _ServerV6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds; a client that sends nothing must not hold a thread for ever

    def log_message(self, format: str, *args: object) -> None:
        """Probes come every second: they are not worth a line."""


class Pages:
    """``/health/live``, ``/health/ready`` (200 or 503) and ``/metrics``; a context manager.

    Raises ConfigError if the address cannot be listened on.
    """

    def __init__(
        self, host: str, port: int, registry: CollectorRegistry, live: Callable[[], bool], ready: Callable[[], bool]
    ) -> None:
        kind = _ServerV6 if ":" in host else _Server
        try:
            self._server = kind((host, port), _Handler)
        except (OSError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(
                f"cannot serve health and metrics on {host} port {port}: {why};"
                " give another --http-port, or 0 for any free one"
            ) from None
        self._server.set_app(_application(registry, live, ready))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="eddy-http", daemon=True)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self._server.server_port}"

    def __enter__(self) -> Pages:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _application(registry: CollectorRegistry, live: Callable[[], bool], ready: Callable[[], bool]) -> WSGIApplication:
    metrics = make_wsgi_app(registry)
    health = {"/health/live": (live, "live"), "/health/ready": (ready, "ready")}

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path == "/metrics":
            answer: Iterable[bytes] = metrics(environ, start_response)
            return answer
        if path in health:
            holds, word = health[path]
            good = holds()
            return _say(
                start_response, "200 OK" if good else "503 Service Unavailable", word if good else f"not {word}"
            )
        there = "\n".join([*health, "/metrics"])
        return _say(start_response, "200 OK" if path == "/" else "404 Not Found", there)

    return application


def _say(start_response: StartResponse, status: str, text: str) -> list[bytes]:
    body = f"{text}\n".encode()
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
    return [body]
