"""Doors of pools: agents come in, and nobody else does."""

import contextlib
import gc
import json
import logging
import os
import pickle
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import psutil
import pytest
from links import WAIT, Pool, arrive, pool_of_links, until

from mgpu_nb.cluster import handshake, reception
from mgpu_nb.cluster import invitation as invitation_module
from mgpu_nb.cluster.door import Door, Refused, dial, route_to
from mgpu_nb.cluster.facts import LINK, check_facts, facts_of_this_node
from mgpu_nb.cluster.handshake import _AGENT, _GREETING, _MARK, _proof, agent_context
from mgpu_nb.cluster.invitation import Invitation
from mgpu_nb.cluster.link import Link

pytestmark = pytest.mark.usefixtures("small_heap")


@pytest.fixture(autouse=True)
def no_thread_or_descriptor_is_left() -> Iterator[None]:
    Invitation.new("127.0.0.1", 1)  # what it imports
    threads, fds = set(threading.enumerate()), psutil.Process().num_fds()
    yield
    gc.collect()
    end = time.monotonic() + 10
    while set(threading.enumerate()) - threads and time.monotonic() < end:
        time.sleep(0.01)  # one that has shown somebody out may be about to end
    assert set(threading.enumerate()) <= threads
    assert psutil.Process().num_fds() <= fds


@pytest.fixture
def pool() -> Iterator[Pool]:
    with pool_of_links() as pool:
        yield pool


def wait_for(condition: Callable[[], object]) -> None:
    until(condition)


def failures(pool: Pool) -> int:
    assert pool.door._reception is not None
    return len(pool.door._reception._failures)


def guests(pool: Pool) -> int:
    assert pool.door._reception is not None
    return len(pool.door._reception._guests)


def joins(pool: Pool) -> None:
    """An agent can join, and its link works."""
    ours, theirs = pool.connect()
    theirs.send(1, body=b"here")
    assert [frame.body for frame in arrive(ours, 1)] == [b"here"]
    ours.close()
    theirs.close()


# Agents.


def test_an_agent_joins_and_each_is_told_what_the_other_said() -> None:
    def admit(facts: dict[str, Any]) -> dict[str, Any]:
        check_facts(facts)
        return {"name": facts["node"], "number": [1, None]}

    with pool_of_links(admit) as pool:
        facts = facts_of_this_node("n1")
        theirs, welcome = dial(pool.invitation, facts)
        ours, told = pool.links.get(timeout=WAIT)
        assert welcome == {"name": "n1", "number": [1, None]}
        assert told == facts
        assert ours.peer == theirs.peer == "127.0.0.1"
        assert not ours._files
        assert theirs._files
        for link in (ours, theirs):
            assert link._sock.version() == "TLSv1.3"
            assert link._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert link._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert not link._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            assert not os.get_inheritable(link.fileno())
        ours.send(1)
        assert [frame.kind for frame in arrive(theirs, 1)] == [1]
        ours.close()
        theirs.close()


def test_many_agents_come_at_once(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reception, "AT_ONCE", 3)
    monkeypatch.setattr("mgpu_nb.cluster.door.RETRY", 0.01)
    invitation = pool.invitation
    links: list[Link] = []
    agents = [
        threading.Thread(target=lambda n=n: links.append(dial(invitation, {"n": n}, 30)[0]))
        for n in range(25)
    ]
    for agent in agents:
        agent.start()
    came = [pool.links.get(timeout=WAIT) for _ in agents]
    for agent in agents:
        agent.join()
    assert sorted(facts["n"] for _, facts in came) == list(range(25))
    assert failures(pool) == 0
    for link in (*links, *(link for link, _ in came)):
        link.close()


def test_an_agent_that_is_refused_has_the_words_and_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    def admit(facts: dict[str, Any]) -> NoReturn:
        raise Refused("it has \x1b[31m Python 3.10\nand more")

    with pool_of_links(admit) as pool:
        caplog.set_level(logging.DEBUG, "mgpu_nb")
        with pytest.raises(ConnectionRefusedError, match=r"refused this agent: it has .* Python 3\.10"):
            dial(pool.invitation, {})
        wait_for(lambda: guests(pool) == 0 and caplog.records)
        assert failures(pool) == 0
        assert all(record.getMessage().isprintable() for record in caplog.records)


@pytest.mark.parametrize("error", [ValueError("a fault"), OSError("another")])
def test_a_pool_that_fails_to_admit_says_so(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    def admit(facts: dict[str, Any]) -> NoReturn:
        raise error

    with pool_of_links(admit) as pool:
        with pytest.raises(ConnectionRefusedError, match="failed to take it in"):
            dial(pool.invitation, {})
        wait_for(lambda: guests(pool) == 0 and str(error) in caplog.text)
        assert failures(pool) == 0


@pytest.mark.parametrize("error", [ValueError("a fault"), OSError("a fault")])
def test_a_link_that_nobody_takes_is_closed(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    def joined(link: Link, facts: dict[str, Any]) -> NoReturn:
        raise error

    door = Door(lambda facts: {}, joined)
    theirs, _ = dial(door.open(), {})
    until(lambda: theirs.closed and "a fault" in caplog.text, theirs)
    theirs.close()
    door.close()


def test_facts_that_no_pool_takes_are_refused_at_their_own_end(pool: Pool) -> None:
    with pytest.raises(ValueError, match="start it with less of them"):
        dial(pool.invitation, {"environment": {"A": "x" * 2**20}})
    joins(pool)


# Where a door is.


def test_open_and_close_at_any_time(pool: Pool) -> None:
    door = pool.door
    door.close()
    assert (door.port, door.is_open) == (None, False)
    first = door.open()
    assert door.open() is first
    assert (door.port, door.is_open) == (first.port, True)
    joins(pool)
    door.close()
    door.close()
    assert not door.is_open
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", first.port), timeout=WAIT)
    assert door.open() == first
    joins(pool)


def test_a_port_that_was_taken_meanwhile(pool: Pool) -> None:
    first = pool.invitation
    pool.door.close()
    with socket.create_server(("127.0.0.1", first.port)):
        second = pool.invitation
        assert second.port != first.port
        assert (second.secret, second.certificate) == (first.secret, first.certificate)
        joins(pool)


def test_links_outlive_their_door(pool: Pool) -> None:
    ours, theirs = pool.connect()
    pool.door.close()
    ours.send(1)
    assert [frame.kind for frame in arrive(theirs, 1)] == [1]
    ours.close()
    theirs.close()


@pytest.mark.parametrize("address", ["0.0.0.0", "::", ""])
def test_every_interface_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="give that which the nodes reach"):
        Door(lambda facts: {}, lambda link, facts: None, address=address)


def test_an_address_of_another_machine(pool: Pool) -> None:
    door = Door(lambda facts: {}, lambda link, facts: None, address="192.0.2.1")
    with pytest.raises(OSError, match=r"192\.0\.2\.1 is no address of this machine"):
        door.open()
    assert not door.is_open


def test_a_port_of_ones_choice_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        door = Door(lambda facts: {}, lambda link, facts: None, port=other.getsockname()[1])
        with pytest.raises(OSError, match=r"[Ii]n use"):
            door.open()
    assert door.open().port == door.port
    door.close()


def test_the_route_to_another_machine() -> None:
    assert route_to("127.0.0.1") == "127.0.0.1"
    with pytest.raises(OSError, match=r"\[Errno"):
        route_to("no.such.host.invalid")


def addresses_of_version_6() -> list[str]:
    """::1, and one of each kind that an interface of this machine has."""
    found = [
        each.address for of in psutil.net_if_addrs().values() for each in of if each.family == socket.AF_INET6
    ]
    kinds = {(address == "::1", address.startswith("fe80:")): address for address in found}
    return sorted(kinds.values())


@pytest.mark.parametrize("address", addresses_of_version_6() or [None])
def test_ipv6(address: str | None) -> None:
    if address is None:
        pytest.skip("this machine has no IPv6")
    with pool_of_links() as pool:
        pool.door._address = address
        pool.door.open()
        joins(pool)


def test_a_door_closed_by_what_it_calls() -> None:
    done = threading.Event()

    def joined(link: Link, facts: dict[str, Any]) -> None:
        link.close()
        door.close()
        done.set()

    door = Door(lambda facts: {}, joined)
    theirs, _ = dial(door.open(), {})
    assert done.wait(WAIT)
    theirs.close()
    wait_for(lambda: not [t for t in threading.enumerate() if t.name.startswith("mgpu_nb-guest")])


def test_nobody_joins_once_it_is_closed() -> None:
    begun, over, late = threading.Event(), threading.Event(), []

    def joined(link: Link, facts: dict[str, Any]) -> None:
        begun.set()
        over.wait(WAIT)
        late.append(closed.is_set())
        link.close()

    door = Door(lambda facts: {}, joined)
    closed = threading.Event()
    theirs, _ = dial(door.open(), {})
    assert begun.wait(WAIT)

    def close() -> None:
        door.close()
        closed.set()

    closing = threading.Thread(target=close)
    closing.start()
    wait_for(lambda: not door.is_open)
    over.set()
    closing.join(WAIT)
    assert late == [False]
    assert closed.is_set()
    theirs.close()


def test_a_fork_does_not_hold_the_door(pool: Pool) -> None:
    """Else the port would be open for as long as the fork runs, and nobody there would answer."""
    invitation = pool.invitation
    silent = socket.create_connection(("127.0.0.1", invitation.port))
    wait_for(lambda: guests(pool) == 1)
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(write)
        own = Door(lambda facts: {}, lambda link, facts: link.close())
        own.open()  # the threads of its own door
        own.close()
        os.read(read, 1)
        os._exit(0 if pool.door.open().port != invitation.port else 1)
    joins(pool)
    pool.door.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", invitation.port), timeout=WAIT)
    silent.settimeout(WAIT)
    assert silent.recv(1) == b""  # the fork does not hold what shook hands either
    silent.close()
    joins(pool)
    os.close(write)
    os.close(read)
    assert os.waitpid(pid, 0)[1] == 0


# Strangers.


class Stranger:
    """A client that does as an agent does, so far."""

    def __init__(self, invitation: Invitation) -> None:
        self.invitation = invitation
        self.plain = socket.create_connection(("127.0.0.1", invitation.port), timeout=WAIT)
        self.sock: socket.socket = self.plain

    def tls(self) -> None:
        self.sock = agent_context(self.invitation).wrap_socket(self.plain)

    def greet(self, mark: bytes = _MARK, version: int = LINK, secret: bytes | None = None) -> None:
        _, _, theirs = _GREETING.unpack(self.sock.recv(_GREETING.size))
        nonce = os.urandom(32)
        known = Invitation(
            "", 0, secret if secret is not None else self.invitation.secret, self.invitation.certificate
        )
        self.sock.sendall(_GREETING.pack(mark, version, nonce) + _proof(known, _AGENT, theirs, nonce))

    def ended(self) -> bool:
        """Whether the pool hangs up, whatever it says before."""
        if self.sock.fileno() < 0:  # it was hung up on while it began to speak TLS
            return True
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while self.sock.recv(2**16):
                pass
        return True

    def close(self) -> None:
        self.sock.close()
        self.plain.close()


def http(stranger: Stranger) -> None:
    stranger.sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")


def ssh(stranger: Stranger) -> None:
    stranger.sock.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")


def noise(stranger: Stranger) -> None:
    stranger.sock.sendall(b"\x16\x03\x01" + os.urandom(50_000))


def a_pickle(stranger: Stranger) -> None:
    stranger.sock.sendall(pickle.dumps(Exploit()))


def client_hello(context: ssl.SSLContext) -> bytes:
    inbound, outbound = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(inbound, outbound).do_handshake()
    return outbound.read()


def old_tls(stranger: Stranger) -> None:
    context = agent_context(stranger.invitation)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    stranger.sock.sendall(client_hello(context))


def wrong_secret(stranger: Stranger) -> None:
    stranger.tls()
    stranger.greet(secret=bytes(32))


def no_secret(stranger: Stranger) -> None:
    stranger.tls()
    stranger.greet(secret=b"")


def another_program(stranger: Stranger) -> None:
    stranger.tls()
    stranger.greet(mark=b"another\n")


def another_version(stranger: Stranger) -> None:
    stranger.tls()
    stranger.greet(version=LINK + 1)


def echo(stranger: Stranger) -> None:
    """What the pool says itself, sent back: its own proof must not do."""
    stranger.tls()
    hello = stranger.sock.recv(_GREETING.size)
    stranger.sock.sendall(hello + hello[-32:])


def too_much_told(stranger: Stranger) -> None:
    stranger.tls()
    stranger.greet()
    stranger.sock.sendall(struct.pack("!I", 2**20 + 1))


def deep_json(stranger: Stranger) -> None:
    stranger.tls()
    stranger.greet()
    stranger.sock.sendall(struct.pack("!I", 900_000) + b"[" * 900_000)


def no_json(stranger: Stranger) -> None:
    stranger.tls()
    stranger.greet()
    data = pickle.dumps(Exploit())
    stranger.sock.sendall(struct.pack("!I", len(data)) + data)


def a_list(stranger: Stranger) -> None:
    stranger.tls()
    stranger.greet()
    stranger.sock.sendall(struct.pack("!I", 2) + b"[]")


class Exploit:
    """What a stranger would have run."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.system, ("echo unpickled >&2; kill -9 $PPID",)


@pytest.mark.parametrize(
    "does",
    [
        http, ssh, noise, a_pickle, old_tls, wrong_secret, no_secret, another_program, another_version, echo,
        too_much_told, deep_json, no_json, a_list,
    ],
)  # fmt: skip
def test_a_stranger_is_shown_out_and_told_of_without_its_bytes(
    pool: Pool, does: Callable[[Stranger], None], caplog: pytest.LogCaptureFixture
) -> None:
    stranger = Stranger(pool.invitation)
    with caplog.at_level(logging.DEBUG, "mgpu_nb"):
        with contextlib.suppress(ConnectionError):  # it may be shown out while it still speaks
            does(stranger)
        assert stranger.ended()
        wait_for(lambda: failures(pool) == 1)
    stranger.close()
    assert pool.links.empty()
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    said = record.getMessage()
    assert said.startswith("a connection from 127.0.0.1 is none of an agent: ")
    assert said.isprintable()
    assert len(said) < 300
    assert "HTTP/" not in said
    assert "OpenSSH" not in said
    joins(pool)


def silent(stranger: Stranger) -> None:
    pass


def half_a_client_hello(stranger: Stranger) -> None:
    stranger.sock.sendall(client_hello(agent_context(stranger.invitation))[:50])


def only_tls(stranger: Stranger) -> None:
    stranger.tls()


def half_a_greeting(stranger: Stranger) -> None:
    stranger.tls()
    stranger.sock.sendall(_MARK)


def no_proof(stranger: Stranger) -> None:
    stranger.tls()
    stranger.sock.sendall(_GREETING.pack(_MARK, LINK, bytes(32)))


def nothing_told(stranger: Stranger) -> None:
    stranger.tls()
    stranger.greet()


def half_told(stranger: Stranger) -> None:
    stranger.tls()
    stranger.greet()
    stranger.sock.sendall(struct.pack("!I", 1000) + b'{"node": ')


STOPS = [silent, half_a_client_hello, only_tls, half_a_greeting, no_proof, nothing_told, half_told]


@pytest.mark.parametrize("stops", STOPS)
def test_one_who_leaves_in_the_middle(pool: Pool, stops: Callable[[Stranger], None]) -> None:
    stranger = Stranger(pool.invitation)
    stops(stranger)
    stranger.close()
    wait_for(lambda: failures(pool) == 1 and guests(pool) == 0)
    joins(pool)


def test_those_who_say_nothing_keep_nobody_waiting_and_are_shown_out(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    strangers = []
    for stops in STOPS:
        stranger = Stranger(pool.invitation)
        stops(stranger)
        strangers.append(stranger)
    wait_for(lambda: guests(pool) == len(STOPS))
    joins(pool)
    wait_for(lambda: guests(pool) == len(STOPS))
    pool.door.close()  # waits for no deadline
    for stranger in strangers:
        assert stranger.ended()
        stranger.close()


@pytest.mark.parametrize("drips", ["plain", "tls"])
def test_the_deadline_is_for_all_of_the_handshake(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, drips: str
) -> None:
    """One who says a byte now and then does not stay for longer."""
    monkeypatch.setattr(reception, "HANDSHAKE", 0.5)
    stranger = Stranger(pool.invitation)
    data = _MARK * 1000 if drips == "tls" else b"\x16\x03\x01\x40\x00" + bytes(10_000)
    ended = threading.Event()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        if drips == "tls":
            stranger.tls()
        for byte in data[:1000]:
            stranger.sock.sendall(bytes([byte]))
            if failures(pool) or ended.wait(0.05):
                break
    assert stranger.ended()
    stranger.close()
    wait_for(lambda: failures(pool) == 1)


def test_only_so_many_shake_hands_at_once(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reception, "AT_ONCE", 2)
    first = [Stranger(pool.invitation) for _ in range(2)]
    wait_for(lambda: guests(pool) == 2)
    further = [Stranger(pool.invitation) for _ in range(20)]
    for stranger in further:
        assert stranger.ended()
        stranger.close()
    assert guests(pool) == 2
    assert failures(pool) == 0
    joined = threading.Thread(target=joins, args=(pool,))  # it is sent away, and tries again
    joined.start()
    for stranger in first:
        stranger.close()
    joined.join(WAIT)
    assert not joined.is_alive()


@pytest.mark.slow
def test_after_many_failures_it_closes_for_a_while(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reception, "FAILURES", 20)
    monkeypatch.setattr(reception, "SHUT", 1.0)
    port = pool.invitation.port

    def flood() -> None:
        for _ in range(2000):
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=WAIT) as sock:
                    sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    while sock.recv(100):
                        pass
            except ConnectionRefusedError:
                return
            except OSError:
                pass
        raise AssertionError("it did not close")

    for _ in range(2):
        flood()
        assert pool.door.is_open
        joins(pool)  # an agent tries until it is open again
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert (
        f"20 connections within 60 s were none of an agent of this pool, from 127.0.0.1: port {port}"
        in (warnings[0])
    )
    flood()
    pool.door.close()  # also while it is shut


@pytest.mark.slow
def test_a_door_whose_port_was_taken_while_it_was_shut_has_it_again_later(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "FAILURES", 3)
    monkeypatch.setattr(reception, "SHUT", 3.0)
    port = pool.invitation.port
    for _ in range(3):
        stranger = Stranger(pool.invitation)
        http(stranger)
        stranger.ended()
        stranger.close()
    running = pool.door._reception
    assert running is not None
    wait_for(lambda: running._listener is None)
    with socket.create_server(("127.0.0.1", port)):
        wait_for(lambda: time.monotonic() > running._wait_until + 0.3)
        assert running._listener is None
    joins(pool)


def test_failures_of_long_ago_do_not_count(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reception, "FAILURES", 3)
    monkeypatch.setattr(reception, "WITHIN", 0.0)
    pool.door.open()
    for number in range(6):
        stranger = Stranger(pool.invitation)
        http(stranger)
        stranger.ended()
        stranger.close()
        expected = min(number + 1, 3)
        wait_for(lambda: failures(pool) == expected)  # noqa: B023
    joins(pool)


@pytest.mark.slow
def test_hundreds_of_strangers_at_once_and_an_agent_among_them(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "FAILURES", 10**6)
    port = pool.invitation.port
    over = threading.Event()

    def bother() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as sock:
                sock.sendall(os.urandom(100))

    bothering = [threading.Thread(target=bother) for _ in range(4)]
    for thread in bothering:
        thread.start()
    try:
        for _ in range(3):
            ours, theirs = (dialled := dial(pool.invitation, {}, WAIT)[0]), pool.links.get(timeout=WAIT)[0]
            assert dialled is ours
            ours.close()
            theirs.close()
    finally:
        over.set()
        for thread in bothering:
            thread.join()


# Dialling.


@contextlib.contextmanager
def answering(answer: Callable[[socket.socket], object]) -> Iterator[int]:
    """Another program on a port: what it does with each connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = server.accept()
                    with sock, contextlib.suppress(OSError, handshake.Stranger):
                        answer(sock)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def at(invitation: Invitation, port: int) -> Invitation:
    return Invitation(
        invitation.address, port, invitation.secret, invitation.certificate, invitation.pool, invitation.path
    )


def test_nobody_answers(pool: Pool) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(ConnectionError) as raised:
            dial(at(pool.invitation, port), {}, 0.5)
    said = str(raised.value)
    assert said.startswith(f"Nobody answers at 127.0.0.1 port {port} (connection refused): the pool has")
    assert f"nc -vz 127.0.0.1 {port}" in said
    assert not isinstance(raised.value, ConnectionRefusedError)


def test_one_who_answers_with_silence(pool: Pool) -> None:
    with (
        answering(lambda sock: sock.recv(2**16) and sock.recv(1)) as port,
        pytest.raises(ConnectionError, match=r"Nobody answers .*timed out|Nobody answers .*too long"),
    ):
        dial(at(pool.invitation, port), {}, 0.5)


def test_a_host_that_is_not_known(pool: Pool) -> None:
    invitation = pool.invitation
    unknown = Invitation("no.such.host.invalid", 1, invitation.secret, invitation.certificate)
    with pytest.raises(ConnectionError, match=r"Nobody answers at no\.such\.host\.invalid port 1"):
        dial(unknown, {}, 0.5)


def test_a_door_that_opens_while_it_is_dialled(pool: Pool) -> None:
    invitation = pool.invitation
    pool.door.close()
    found: list[Link] = []
    agent = threading.Thread(target=lambda: found.append(dial(invitation, {}, WAIT)[0]))
    agent.start()
    pool.door.open()
    agent.join(WAIT)
    (theirs,) = found
    theirs.close()


def bad_request(sock: socket.socket) -> None:
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    sock.recv(2**16)


def test_another_program_has_the_port(pool: Pool) -> None:
    with (
        answering(bad_request) as port,
        pytest.raises(ConnectionError, match=r"reached, but it does not speak TLS .*take the invitation"),
    ):
        dial(at(pool.invitation, port), {})


def test_the_certificate_is_another_pools(pool: Pool) -> None:
    with (
        pool_of_links() as other,
        pytest.raises(ConnectionError, match="reached, but it has another certificate than the invitation"),
    ):
        dial(at(pool.invitation, other.invitation.port), {})


def test_the_secret_is_another(pool: Pool) -> None:
    invitation = pool.invitation
    other = Invitation(invitation.address, invitation.port, bytes(32), invitation.certificate)
    with pytest.raises(ConnectionError, match="reached, but it does not take the secret"):
        dial(other, {})
    joins(pool)


def test_a_pool_that_does_not_know_the_secret(pool: Pool) -> None:
    """One who stole the key and not the secret takes no agent in, and is told nothing."""
    invitation, key = Invitation.new("127.0.0.1", 0)
    context = handshake.pool_context(invitation, key)
    heard = bytearray()

    def answer(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as tls:
            tls.sendall(_GREETING.pack(_MARK, LINK, bytes(32)))
            tls.recv(2**16)
            tls.sendall(os.urandom(32))
            while part := tls.recv(2**16):
                heard.extend(part)

    with (
        answering(answer) as port,
        pytest.raises(ConnectionError, match="it does not know the secret"),
    ):
        dial(at(invitation, port), {"environment": {"KEY": "private"}})
    assert not heard


@pytest.mark.parametrize(
    ("greeting", "said"),
    [
        (_GREETING.pack(b"another\n", LINK, bytes(32)), "it is no pool of mgpu_nb"),
        (
            _GREETING.pack(_MARK, LINK + 1, bytes(32)),
            f"link version {LINK + 1}, this one {LINK}: install the same version",
        ),
    ],
)
def test_a_pool_of_another_kind(greeting: bytes, said: str) -> None:
    invitation, key = Invitation.new("127.0.0.1", 0)
    context = handshake.pool_context(invitation, key)

    def answer(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as tls:
            tls.sendall(greeting)
            tls.recv(2**16)

    with answering(answer) as port, pytest.raises(ConnectionError, match=said):
        dial(at(invitation, port), {})


@pytest.mark.parametrize("told", [{}, {"welcome": 5}, {"refused": 5}])
def test_answers_that_are_none(told: dict[str, Any]) -> None:
    invitation, key = Invitation.new("127.0.0.1", 0)
    context = handshake.pool_context(invitation, key)

    def answer(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as tls:
            talk = handshake._Talk(tls, time.monotonic() + WAIT)
            nonce = os.urandom(32)
            talk.write(_GREETING.pack(_MARK, LINK, nonce))
            _, _, theirs = _GREETING.unpack(talk.read(_GREETING.size))
            talk.read(32)
            talk.write(_proof(invitation, handshake._POOL, nonce, theirs))
            talk.read_json()
            talk.write_json(told)
            tls.recv(1)

    with (
        answering(answer) as port,
        pytest.raises(ConnectionError, match="neither a welcome nor a refusal"),
    ):
        dial(at(invitation, port), {})


def test_clocks_that_differ_too_much_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import datetime

    monkeypatch.setattr(invitation_module, "CLOCKS_DIFFER", -datetime.timedelta(days=1))
    with pool_of_links() as pool, pytest.raises(ConnectionError, match="see to the clocks of both"):
        dial(pool.invitation, {})


def test_proofs_are_of_one_handshake_one_role_and_one_certificate() -> None:
    first, _ = Invitation.new("a", 1)
    other = Invitation("a", 1, first.secret, Invitation.new("a", 1)[0].certificate)
    one, two = bytes(32), bytes([1]) * 32
    proofs = {
        _proof(known, role, *nonces)
        for known in (first, other)
        for role in (_AGENT, handshake._POOL)
        for nonces in ((one, two), (two, one), (one, one))
    }
    assert len(proofs) == 12
    assert json.dumps(sorted(map(len, proofs))) == json.dumps([32] * 12)
