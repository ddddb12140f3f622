"""The coordination service of a gang, hosted by the supervisor.

JAX starts this service inside rank 0, whose death then takes the gang's meeting point along. Here it lives in the
supervisor, one for each generation of the gang, so that any worker may die. Only ``jaxlib`` is imported (0.2 s); no JAX
backend is initialised.

Two rules of JAX's own that the supervisor must keep:

- Shut a service down only when each of its live members has left it (``distributed.leave``). A member that is still
  connected learns of the loss at once through its open error poll and ends with SIGABRT, beyond any Python handler.
- ``recoverable`` is a property of the service alone. Without it the service tells all members of a dead one, and they
  end with SIGABRT too.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Any

from colossus.spec.errors import EngineError

_NUM_TRIES = 20


class CoordinationService:
    """The meeting point of ``num_processes`` workers at ``address``, until ``shutdown``. Usable as a context manager.

    ``host``: the address to listen on and to give to the workers; only loopback unless told otherwise.
    ``port``: None takes a free one. Raises EngineError when the port is taken or no service can be started.
    A member is held dead after ``heartbeat_timeout_s`` of silence (whole seconds, at least 1).
    """

    def __init__(
        self, num_processes: int, *, host: str = "127.0.0.1", port: int | None = None, heartbeat_timeout_s: float = 10.0, recoverable: bool = True
    ) -> None:
        self._num_processes = num_processes
        self._host = host
        self._options = {
            "heartbeat_timeout": max(1, round(heartbeat_timeout_s)),
            "shutdown_timeout": 1,
            "recoverable": recoverable,
        }
        self._service: Any = None
        self.port = self._start_on(port) if port is not None else self._start_on_free_port()

    @property
    def address(self) -> str:
        """``host:port``, as workers pass it to ``distributed.join``."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self.port}"

    def shutdown(self, *, wait: bool = True) -> None:
        """Ends the service; harmless when repeated. Members must have left or be dead (see the module's rules).

        It takes up to 3 s when members died without leaving; ``wait=False`` lets a thread do it.
        """
        service, self._service = self._service, None
        if service is None:
            return
        thread = threading.Thread(target=service.shutdown, name="coordination-shutdown", daemon=True)
        thread.start()
        if wait:
            thread.join()

    def __enter__(self) -> CoordinationService:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.shutdown()

    def _start_on(self, port: int) -> int:
        if not _is_free(self._host, port):
            raise EngineError(f"port {port} on {self._host} is taken", hint="give another port, or none to let a free one be chosen")
        self._start(port)
        return port

    def _start_on_free_port(self) -> int:
        for _ in range(_NUM_TRIES):
            port = _free_port(self._host)
            with contextlib.suppress(EngineError):  # another process took it in between
                self._start(port)
                return port
        raise EngineError(f"no coordination service could be started on {self._host} in {_NUM_TRIES} tries")

    def _start(self, port: int) -> None:
        host = f"[{self._host}]" if ":" in self._host else self._host
        from jaxlib import _jax

        try:
            self._service = _jax.get_distributed_runtime_service(f"{host}:{port}", self._num_processes, **self._options)
        except Exception as error:  # jaxlib's own error type lives in jax, which stays unimported here
            raise EngineError(f"the coordination service could not listen on {host}:{port}: {error}") from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _free_port(host: str) -> int:
    with socket.socket(_family(host)) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _is_free(host: str, port: int) -> bool:
    """gRPC binds with SO_REUSEPORT, so two services could share a port unseen: look before."""
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
