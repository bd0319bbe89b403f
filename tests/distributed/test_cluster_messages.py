"""What Ray's machines report is said in a line."""

from __future__ import annotations

from drgn_ray.distributed.cluster import brief

TRACEBACK = """Traceback (most recent call last):
  File "external_storage.py", line 346, in spill_objects
OSError: [Errno 28] No space left on device
An internal error occurred while the IO worker was spilling objects: [Errno 28] No space left on device

"""


def test_of_a_traceback_the_end_is_said() -> None:
    assert brief(TRACEBACK).endswith("spilling objects: [Errno 28] No space left on device")


def test_of_what_ray_explains_at_length_the_beginning_is_said() -> None:
    assert brief("\n  A worker died.\nTo troubleshoot the problem, check the logs.\n") == "A worker died."
    assert brief("") == ""
