"""A worker's place in the gang: joining, meeting, leaving and forming anew, and programs that are compiled once.

The only module that touches JAX's private parts. JAX holds one gang per process for its lifetime and ends the process
when the gang breaks; each function here says which behaviour it works around. Checked with jax 0.10.2 and 0.12.0.1.

The life of a worker::

    join(address, n, rank) ... wait(step(...)) ... except Exception as e: if is_peer_failure(e): leave(); <tell the supervisor>
    join(new address, n, rank) ...

A survivor must have left before its supervisor shuts the old service down. While the main thread is blocked in a
collective that no longer has all its peers, another thread calls ``interrupt``; results of collectives are awaited with
``wait``, because that is the only wait which can always be interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import gc
import hashlib
import json
import logging
import os
import pickle
import socket
import struct
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax._src import cache_key, compilation_cache, compiler, dispatch, xla_bridge
from jax._src import distributed as jax_distributed
from jax._src.compilation_cache_interface import CacheInterface
from jax._src.lib import _jax, xla_client
from jax.experimental import serialize_executable
from jax.extend.backend import clear_backends

from colossus.spec.errors import EngineError

_log = logging.getLogger(__name__)

# A gloo context is made by the first collective and gives up after 30 s, which no option changes: meet before it.
_PEERS_KEY = "colossus/gloo"
_COMPILE_WAIT_S = 600.0

Address = tuple[str, int]


class GangError(EngineError):
    """This process cannot be part of the gang, nor of the next one: it must exit, and be started anew."""


class PeerError(EngineError, RuntimeError):
    """A peer is lost, and gloo did not say so (see ``wait``)."""


class ExecutableError(EngineError):
    """A compiled program cannot be saved, or what was saved does not fit this gang; compile it instead."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Membership:
    """What this process must remember of its gang to leave it. ``own``, ``peers``: where gloo listens, here and there."""

    client: Any
    num_processes: int
    own: frozenset[Address] = frozenset()
    peers: frozenset[Address] = frozenset()


_membership: _Membership | None = None
_answered: _Membership | None = None
_interrupted = threading.Event()
# Backends that were left while gloo waits in one of their threads: destroying one would wait too. Each keeps the memory of
# the step it was in, so a process that has collected some is better started anew.
_abandoned: list[Any] = []
_MAX_ABANDONED = 4
_own_listeners: frozenset[Address] = frozenset()


# Joining and leaving


def join(
    address: str | None,
    num_processes: int,
    process_id: int,
    *,
    heartbeat_timeout_s: float = 10.0,
    platform: str = "cpu",
    timeout_s: float = 120.0,
) -> None:
    """Makes this process rank ``process_id`` of the gang that meets at ``address``, and builds its backend.

    ``address`` None: one process on its own, no gang. The service at ``address`` is the supervisor's: unlike
    ``jax.distributed.initialize``, rank 0 starts none. Returns when all members have come. Raises GangError when they do
    not come within ``timeout_s`` (and some 5 s more), which nothing can interrupt, or when this process is in a gang
    already. A peer that dies once all have come is a peer failure like any other, as in a step: ``leave`` must follow.
    """
    if _membership is not None:
        raise GangError("this process is in a gang already", hint="leave() it first")
    if xla_bridge.backends_are_initialized():
        raise GangError("a JAX backend was made before the gang was joined", hint="join() before any array, or leave() first")
    _enter(address, num_processes, process_id, heartbeat_timeout_s=heartbeat_timeout_s, platform=platform, timeout_s=timeout_s)


def _enter(
    address: str | None, num_processes: int, process_id: int, *, heartbeat_timeout_s: float = 10.0, platform: str = "cpu", timeout_s: float = 120.0
) -> None:
    _count_compilations()
    jax.config.update("jax_platforms", platform)
    if address is None:
        _set_jax_state(None, None, 1, 0)
        jax.devices()
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    _use_own_gloo()
    client = _connect(address, process_id, heartbeat_timeout_s=heartbeat_timeout_s, timeout_s=timeout_s)
    _set_jax_state(client, address, num_processes, process_id)
    if xla_bridge.backends_are_initialized():
        _forget_backend()  # a thread of the old gang (Orbax's, woken as its save failed) asked for devices meanwhile, and got a gang of one
    _build_backend(client, num_processes)


def leave() -> None:
    """Takes this process out of its gang, alive: afterwards it has no backend, no arrays, no compiled programs.

    The caller must have dropped its own references to arrays and compiled programs; what it keeps stays in memory (as
    does the old backend). Never waits for peers. Raises GangError when the process cannot be saved.
    """
    global _membership, _own_listeners, _answered
    membership, _membership = _membership, None
    _answered = None
    if membership is not None:
        _disconnect(membership.client)
        _cut(membership)
    _own_listeners = frozenset()
    _interrupted.clear()
    _set_jax_state(None, None, 1, 0)
    if len(_abandoned) > _MAX_ABANDONED:
        raise GangError(f"{len(_abandoned)} backends of this process wait for lost peers")
    _forget_backend()


def reform(address: str | None, num_processes: int, process_id: int, **options: Any) -> None:
    """Leaves the old gang, if any, and joins the next one; the options are those of ``join``."""
    leave()
    _enter(address, num_processes, process_id, **options)


def interrupt() -> int:
    """Breaks what the main thread is blocked in, from another thread; returns the connections cut. ``leave`` must follow.

    Gloo waits without limit for a peer that is stopped, and for one that lives but waits for a dead one itself; joining,
    barriers and gloo's first meeting wait for a word through the service. Leaving the service cancels the latter, and
    shutting down this process's connections to its peers ends the former, each with an exception (``is_peer_failure``).
    Listening sockets are left alone: gloo aborts the process when its accept fails. Harmless when repeated, or when
    nothing is blocked: the next collective fails then. Repeat it until the main thread has left: what it is about to
    wait for is not always there to be cut.
    """
    membership = _membership
    if membership is None:
        return 0
    _interrupted.set()
    with contextlib.suppress(GangError):  # leave() meets it again
        _disconnect(membership.client)
    _answer_for_peers(membership)
    return _cut(membership)


# After an interrupt, how long gloo has to end its wait by itself; how soon an interrupt is noticed.
_GRACE_S = 0.5
_NOTICE_S = 0.1


def wait(tree: Any) -> Any:
    """Waits until the arrays of ``tree`` are ready, and returns it; raises what their computation failed with.

    As jax.block_until_ready, but ``interrupt`` ends it always: when a connection breaks in the middle of a message, gloo
    forgets the buffers involved and waits for them without end (seen in one of four kills of gangs of three). Then
    PeerError is raised, and ``leave`` abandons the backend to that wait. A thread of its own does the blocking, since
    looking again and again would take the cores that the computation needs.
    """
    done, deadline = threading.Event(), None
    threading.Thread(target=_block, args=(tree, done), daemon=True, name="wait").start()
    while not done.wait(_NOTICE_S):
        if _interrupted.is_set():
            deadline = deadline or time.monotonic() + _GRACE_S
            if time.monotonic() > deadline:
                stuck = [leaf for leaf in jax.tree.leaves(tree) if not leaf.is_ready()]
                if not stuck:
                    break
                _abandoned.append(next(iter(stuck[0].sharding.device_set)).client)
                raise PeerError("gloo still waits for a lost peer, and was interrupted")
    return jax.block_until_ready(tree)


def _block(tree: Any, done: threading.Event) -> None:
    """Sets ``done`` once the arrays are ready or have failed; the caller meets the failure itself."""
    with contextlib.suppress(Exception):
        jax.block_until_ready(tree)
    done.set()


def barrier(name: str, timeout_s: float) -> None:
    """Waits for all ranks at ``name``, which may be used once in a gang's life.

    Needed between compiling and the first collective: ranks compile at different speeds, and gloo's first meeting gives
    up after 30 s. This one has its own limit. Raises what ``is_peer_failure`` knows when a rank does not come.
    """
    if _membership is not None:
        _membership.client.wait_at_barrier(f"colossus/{name}", max(1, round(timeout_s * 1000)))


def agree(name: str, value: str | None, timeout_s: float = 600.0) -> str:
    """The value that the one rank which gives it (not None) gives; ``name`` may be used once in a gang's life."""
    if _membership is None:
        assert value is not None
        return value
    if value is not None:
        _membership.client.key_value_set(f"colossus/{name}", value)
    return str(_membership.client.blocking_key_value_get(f"colossus/{name}", round(timeout_s * 1000)))


_PEER_WORDS = (
    "gloo",
    "nccl",
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "socket closed",
    "coordination service",
    "coordinationservice",
    "barrier timed out",
    "waitatbarrier",
    "getkeyvalue",
    "heartbeat timeout",
    "task has failed",
)


def is_peer_failure(error: BaseException) -> bool:
    """Whether ``error``, or what caused it, says that a peer is lost (and not that this program is wrong)."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, PeerError):
            return True
        if isinstance(seen, (RuntimeError, ValueError)) and not isinstance(seen, GangError):
            text = str(seen).lower()
            if any(word in text for word in _PEER_WORDS):
                return True
        seen = seen.__cause__ or seen.__context__
    return False


def _connect(address: str, process_id: int, *, heartbeat_timeout_s: float, timeout_s: float) -> Any:
    """A client of the service at ``address``, connected; returns once all members are.

    The client ends the process (SIGABRT) when connecting or disconnecting fails, unless it has a callback. Ours is never
    reached: jaxlib cannot hand it the status, and that failure arrives here as a RuntimeError. Only the client's own
    background threads still end the process: when the service is lost, or holds this process for dead.
    """
    client = _jax.get_distributed_runtime_client(
        address,
        process_id,
        init_timeout=max(1, round(timeout_s)),
        heartbeat_timeout=max(1, round(heartbeat_timeout_s)),
        shutdown_on_destruction=False,
        missed_heartbeat_callback=_never_called,
        use_compression=True,
    )
    try:
        client.connect()
    except RuntimeError as error:
        raise GangError(f"the gang at {address} did not come together within {timeout_s:g} s") from error
    return client


def _never_called(*_: Any) -> None:
    """See _connect."""


def _set_jax_state(client: Any, address: str | None, num_processes: int, process_id: int) -> None:
    """What jax.distributed.initialize sets, without starting a service in rank 0 and without its SIGTERM handler."""
    state = jax_distributed.global_state
    state.client, state.service, state.preemption_sync_manager = client, None, None
    state.coordinator_address, state.num_processes, state.process_id = address, num_processes, process_id


def _build_backend(client: Any, num_processes: int) -> None:
    """Exchanges the topology with all peers; what is raised when one dies meanwhile is a peer failure like any other."""
    global _membership
    _membership = _Membership(client=client, num_processes=num_processes)
    jax.devices()
    rows = client.key_value_dir_get(_PEERS_KEY)
    peers = frozenset((host, port) for _, row in rows for host, port in json.loads(row))
    _membership = _Membership(client=client, num_processes=num_processes, own=_own_listeners, peers=peers)


def _disconnect(client: Any) -> None:
    """Says goodbye to the service, once. Its loss would end the process, but for the callback: see _connect."""
    try:
        client.shutdown()
    except RuntimeError as error:
        raise GangError("the coordination service was lost before this process could leave it") from error


def _forget_backend() -> None:
    """Drops every compiled program, array and backend that JAX itself holds.

    Tokens of ordered effects are forgotten first: clear_backends waits for them, and those of a broken gang fail.
    """
    dispatch.runtime_tokens.clear()
    _loaded_keys.clear()
    jax.clear_caches()
    clear_backends()
    gc.collect()


# Gloo on the interface that leads to the coordinator


def _use_own_gloo() -> None:
    """Has the CPU backend listen where the coordinator is (loopback stays on loopback), not on the host name's address."""
    registration = xla_bridge._backend_factories["cpu"]
    if registration.factory is not _make_cpu_client:
        xla_bridge._backend_factories["cpu"] = dataclasses.replace(registration, factory=_make_cpu_client)


def _make_cpu_client() -> Any:
    global _own_listeners
    state = jax_distributed.global_state
    if state.client is None or state.coordinator_address is None:
        return xla_bridge.make_cpu_client()
    before = set(_listeners())
    collectives = _jax.make_gloo_tcp_collectives(distributed_client=state.client, hostname=_own_host(_parse(state.coordinator_address)))
    _own_listeners = frozenset(set(_listeners()) - before)
    state.client.key_value_set(f"{_PEERS_KEY}/{state.process_id}", json.dumps(sorted(_own_listeners)))
    return xla_bridge.make_cpu_client(collectives=collectives)


def _own_host(coordinator: Address) -> str:
    """This machine's address on the way to the coordinator."""
    family = socket.AF_INET6 if ":" in coordinator[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(coordinator)
        return str(probe.getsockname()[0])


def _parse(address: str) -> Address:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _sockets() -> Iterator[socket.socket]:
    """A duplicate of every internet socket of this process, closed after use."""
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError, ValueError):
            duplicate = os.dup(int(name))
            try:
                opened = socket.socket(fileno=duplicate)
            except OSError:
                os.close(duplicate)
                continue
            with opened:
                if opened.family in (socket.AF_INET, socket.AF_INET6):
                    yield opened


def _is_listening(opened: socket.socket) -> bool:
    return bool(opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _plain(address: Any) -> Address:
    return str(address[0]).removeprefix("::ffff:"), int(address[1])


def _listeners() -> Iterator[Address]:
    for opened in _sockets():
        if _is_listening(opened):
            yield _plain(opened.getsockname())


def _cut(membership: _Membership) -> int:
    """Shuts down this process's gloo connections: those that came to its listener, and those to its peers' listeners."""
    num_cut = 0
    for opened in _sockets():
        with contextlib.suppress(OSError):
            if _is_listening(opened):
                continue
            if _plain(opened.getsockname()) in membership.own or _plain(opened.getpeername()) in membership.peers:
                opened.shutdown(socket.SHUT_RDWR)
                num_cut += 1
    return num_cut


# A rank of a communicator waits for those of higher rank to connect, each naming the number of its pair (8 bytes). The
# numbers count up from 0, one for each rank of each communicator; this is how many communicators are answered for.
_NUM_COMMUNICATORS = 16


def _answer_for_peers(membership: _Membership) -> None:
    """Connects to our own listener in place of peers that died before they did, for which gloo waits without limit.

    The connection closes at once, so the collective that waited for it fails. Once is enough: gloo keeps what comes early
    for a pair that waits later (and an open file for each until the gang is left).
    """
    global _answered
    if _answered is membership:
        return
    _answered = membership
    for host, port in membership.own:
        for number in range(_NUM_COMMUNICATORS * membership.num_processes):
            try:
                with socket.create_connection((host, port), timeout=1.0) as peer:
                    peer.sendall(struct.pack("=q", number))
            except OSError:
                break


# Compiling once


class _SharedCache(CacheInterface):
    """JAX's persistent cache with whole files only, and with one process compiling what all want.

    JAX's own writes in place: a process killed meanwhile leaves a damaged entry that is never replaced.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._locks = os.open(folder / ".locks", os.O_RDWR | os.O_CREAT, 0o644)
        self._held = threading.local()

    def get(self, key: str) -> bytes | None:
        data = self._read(key)
        if data is None and self._wait_for_turn(key):
            data = self._read(key)
        return data

    def put(self, key: str, value: bytes) -> None:
        part = self._path / f".{key}.{os.getpid()}.{threading.get_ident()}"
        try:
            part.write_bytes(value)
            os.replace(part, self._path / key)
        finally:
            part.unlink(missing_ok=True)

    def release(self) -> None:
        """Ends this thread's turn, whether or not it led to an entry."""
        offset = getattr(self._held, "offset", None)
        self._held.offset = None
        if offset is not None:
            fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, offset)

    def _read(self, key: str) -> bytes | None:
        try:
            return (self._path / key).read_bytes()
        except FileNotFoundError:
            return None

    def _wait_for_turn(self, key: str) -> bool:
        """Waits while another process compiles ``key``; the kernel ends the turn of one that dies. False: no locks here."""
        offset = int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big")
        deadline = time.monotonic() + _COMPILE_WAIT_S
        while time.monotonic() < deadline:
            try:
                fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
            except BlockingIOError:
                if (self._path / key).exists():
                    return True
                time.sleep(0.01)
            except OSError:
                return False
            else:
                self._held.offset = offset
                return True
        return True


_cache: _SharedCache | None = None
_originals: dict[str, Callable[..., Any]] = {}


def share_compilation_cache(folder: str | os.PathLike[str]) -> None:
    """Keeps compiled programs in ``folder``, for every rank and every later process with the same layout.

    JAX's CPU keys name the rank, and only rank 0 writes, so all other ranks compile at every start. Here ranks share
    keys, any rank writes, and of ranks that want the same program at once one compiles and the others read its result.
    """
    global _cache
    _count_compilations()
    jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    _cache = _SharedCache(Path(folder))
    compilation_cache.reset_cache()
    compilation_cache._cache = _cache
    compilation_cache._cache_initialized = True
    _patch(compiler, "_cache_write", _cache_write)
    _patch(compilation_cache, "get_executable_and_time", _get_executable_and_time)
    _patch(compiler, "compile_or_get_cached", _compile_in_turn)
    _patch(cache_key, "_hash_accelerator_config", _hash_accelerator_config)


def _patch(module: Any, name: str, function: Callable[..., Any]) -> None:
    if name not in _originals:
        _originals[name] = getattr(module, name)
        setattr(module, name, function)


def _compile_in_turn(*args: Any, **kwargs: Any) -> Any:
    _found.key = None
    try:
        executable = _originals["compile_or_get_cached"](*args, **kwargs)
    finally:
        if _cache is not None:
            _cache.release()
    _loaded_keys.pop(id(executable), None)  # of a program that is gone, had it the same identity
    if _found.key is not None:
        _loaded_keys[id(executable)] = _found.key
    return executable


def _cache_write(key: str, compile_time_s: float, name: str, backend: Any, executable: Any, host_callbacks: Sequence[Any] = ()) -> None:
    """JAX's own returns without writing unless this is rank 0. Programs that call back into Python are not kept."""
    if host_callbacks:
        return
    try:
        compilation_cache.put_executable_and_time(key, name, executable, backend, int(compile_time_s))
    except Exception as error:  # a full disk must not end the run
        warnings.warn(f"the compiled program {name!r} was not kept: {error}", stacklevel=2)


# Cache keys of the programs that were loaded from the cache, by the identity of the program; the key just found.
_loaded_keys: dict[int, str] = {}
_found = threading.local()


def _get_executable_and_time(key: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Remembers where a program came from: see _Pickler."""
    executable, compile_time_s = _originals["get_executable_and_time"](key, *args, **kwargs)
    _found.key = None if executable is None else key
    return executable, compile_time_s


class _Pickler(serialize_executable._JaxPjrtPickler):
    """A program that was itself loaded loses some of its functions when XLA's CPU backend serialises it again (seen with
    jax 0.10.2: "NOT_FOUND: Function copy_bitcast_fusion.47 not found"), so its bytes are taken from the cache."""

    def persistent_id(self, obj: Any) -> Any:
        key = _loaded_keys.get(id(obj))
        data = _cache.get(key) if key is not None and _cache is not None else None
        if data is None:
            return super().persistent_id(obj)
        return ("exec", compilation_cache.extract_executable_and_time(compilation_cache.decompress_executable(data))[0])


def _hash_accelerator_config(hash_obj: Any, devices: Any) -> None:
    """JAX hashes the topology, which on CPU names this process's rank. Ours is that of the same machine as rank 0."""
    device = devices.flat[0]
    if device.platform != "cpu":
        _originals["_hash_accelerator_config"](hash_obj, devices)
        return
    hash_obj.update(_cpu_fingerprint(jax.local_device_count()))


_fingerprints: dict[int, bytes] = {}


def _cpu_fingerprint(num_devices: int) -> bytes:
    """Instruction set and device count of this machine, by way of a backend that is in no gang."""
    if num_devices not in _fingerprints:
        client = xla_client.make_cpu_client(num_devices=num_devices)
        topology = xla_client.get_topology_for_devices(client.devices())  # type: ignore[attr-defined]
        _fingerprints[num_devices] = topology.fingerprint().to_bytes(8, "big")
    return _fingerprints[num_devices]


_counts = {"backend_compile": 0, "cache_hits": 0}
_counting = False


def compilations() -> int:
    """How many programs XLA has really compiled in this process: those wanted less those found in the cache."""
    _count_compilations()
    return _counts["backend_compile"] - _counts["cache_hits"]


def _count_compilations() -> None:
    global _counting
    if not _counting:
        _counting = True
        jax.monitoring.register_event_duration_secs_listener(_on_duration)
        jax.monitoring.register_event_listener(_on_event)


def _on_duration(event: str, duration_secs: float, **_: Any) -> None:
    _counts["backend_compile"] += event == "/jax/core/compile/backend_compile_duration"


def _on_event(event: str, **_: Any) -> None:
    _counts["cache_hits"] += event == "/jax/compilation_cache/cache_hits"


# Compiled programs as bytes


def save_executable(compiled: jax.stages.Compiled) -> bytes:
    """A compiled program as bytes that any rank of a gang with the same layout can load, without tracing."""
    try:
        _patch(serialize_executable, "_JaxPjrtPickler", _Pickler)
        payload, in_tree, out_tree = serialize_executable.serialize(compiled)
        return pickle.dumps((_gang_mark(), payload, in_tree, out_tree))
    except Exception as error:
        raise ExecutableError(f"the compiled program cannot be saved: {error}") from error


def load_executable(data: bytes) -> jax.stages.Compiled:
    """The program that ``save_executable`` saved. Only for files of one's own run: unpickling runs code."""
    try:
        mark, payload, in_tree, out_tree = pickle.loads(data)
    except Exception as error:
        raise ExecutableError(f"not a saved program: {error}") from error
    if mark != _gang_mark():
        raise ExecutableError(f"saved for {mark}, but this is {_gang_mark()}", hint="compile it")
    try:
        return serialize_executable.deserialize_and_load(payload, in_tree, out_tree)
    except Exception as error:
        raise ExecutableError(f"the saved program cannot be loaded: {error}") from error


def _gang_mark() -> dict[str, Any]:
    """What must be equal where a program is saved and loaded."""
    devices = jax.devices()
    mark: dict[str, Any] = {"jax": jax.__version__, "platform": devices[0].platform, "devices": [device.id for device in devices]}
    if mark["platform"] == "cpu":
        mark["cpu"] = _cpu_fingerprint(jax.local_device_count()).hex()
    return mark
