"""Workers listen where Ray knows their machine; tests/chaos has two machines that only so find each other."""

from __future__ import annotations

from drgn_ray.distributed.network import interface_of


def test_an_address_of_this_machine_is_found_on_its_interface() -> None:
    assert interface_of("127.0.0.1") == "lo"


def test_an_address_that_is_translated_on_the_way_has_no_interface_here() -> None:
    assert interface_of("192.0.2.1") is None
