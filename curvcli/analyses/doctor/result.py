"""What `curvcli doctor` answers."""

from typing import Annotated

from msgspec import Meta, Struct


class SelfTest(Struct, frozen=True):
    """A computation whose answer is known."""

    name: str
    error: Annotated[float, Meta(description="relative to the known answer")]
    tolerance: float
    passed: bool


class DoctorResult(Struct, frozen=True):
    """Versions, devices and self-tests."""

    python: str
    platform: str
    packages: dict[str, str]
    devices: Annotated[list[str], Meta(description="usable with --device")]
    threads: int
    free_memory: Annotated[int, Meta(description="bytes on the device in use, less a margin")]
    tests: list[SelfTest]
    healthy: bool
