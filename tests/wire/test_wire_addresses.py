"""Who listens where."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from llumnix.types import InstanceId
from llumnix.wire.addresses import AddressBook, between_machines, on_one_machine, ports_needed
from llumnix.wire.curve import CurveKeys

KEYS = CurveKeys("public", "secret")
I0 = InstanceId("i0")


def everybody(book: AddressBook) -> list[str]:
    fronts = [address for front in book.fronts for address in (front.control, front.requests, front.tokens)]
    return [book.launcher, book.scheduler, *fronts]


def test_on_one_machine_everybody_has_a_socket_in_the_private_folder() -> None:
    book = on_one_machine(Path("/run/x"), front_ends=2)
    addresses = [*everybody(book), book.instance(I0)]
    assert len(set(addresses)) == 9
    assert all(address.startswith("ipc:///run/x/") for address in addresses)
    assert book.keys is None


@pytest.mark.parametrize("front_ends", [1, 3])
def test_between_machines_everybody_at_the_launcher_has_a_port(front_ends: int) -> None:
    ports = range(7000, 7000 + ports_needed(front_ends))
    book = between_machines(Path("/run/x"), "10.0.0.1", ports, KEYS)
    assert sorted(everybody(book)) == [f"tcp://10.0.0.1:{port}" for port in ports]
    assert book.front_ends == len(book.all_front_ends) == front_ends


def test_an_instance_takes_any_port_of_its_own_machine() -> None:
    book = between_machines(Path("/run/x"), "10.0.0.1", range(7000, 7005), KEYS).on_machine("10.0.0.2", Path("/run/y"))
    assert book.instance(I0) == "tcp://10.0.0.2:*"
    assert (book.launcher, book.run_dir, book.keys) == ("tcp://10.0.0.1:7000", "/run/y", KEYS)


def test_numbers_of_the_sixth_version_are_bracketed() -> None:
    assert between_machines(Path("/x"), "fd00::1", range(1, 6), KEYS).launcher == "tcp://[fd00::1]:1"


def test_book_survives_the_way_to_another_process() -> None:
    book = between_machines(Path("/run/x"), "10.0.0.1", range(7000, 7005), KEYS)
    assert msgspec.json.decode(msgspec.json.encode(book), type=AddressBook) == book


def test_too_long_a_folder_fails_before_a_socket_does() -> None:
    with pytest.raises(AssertionError, match="too long"):
        on_one_machine(Path("/" + "x" * 100))
