"""Two hosts joined by a slow link (network namespaces of this machine) give one answer, as of one process."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import SAMPLES

ADDRESSES = ("10.77.31.1", "10.77.31.2")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two namespaces with a link of 100 Mbit/s between them."""
    if shutil.which("ip") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("network namespaces need the program ip and root")
    names = [f"cc{os.getpid() % 100_000}{side}" for side in "ab"]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", names[0], "type", "veth", "peer", "name", names[1])
            for name, address in zip(names, ADDRESSES, strict=True):
                ip("link", "set", name, "netns", name)
                ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
                ip("-n", name, "link", "set", name, "up")
                ip("-n", name, "link", "set", "lo", "up")
                limit = ["rate", "100mbit", "burst", "64kb", "latency", "50ms"]
                subprocess.run(
                    ["ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", name, "root", "tbf", *limit],
                    check=True, capture_output=True, timeout=20,
                )  # fmt: skip
        except (subprocess.CalledProcessError, OSError) as problem:
            pytest.skip(f"no network namespaces here: {problem}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.timeout(300)
def test_two_hosts_are_one_run(hosts: list[str]) -> None:
    """Started by torchrun on each host; the first host writes the answer."""
    target = str(SAMPLES / "digits_mlp.toml")
    command = ["hessian", target, "--top", "3", "--format", "json"]
    shared = {
        k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    } | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [
                "ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2",
                "--nproc-per-node", "1", "--node-rank", str(rank), "--master-addr", ADDRESSES[0],
                "--master-port", "29533", "-m", "curvcli", *command,
            ],
            env={**shared, "GLOO_SOCKET_IFNAME": name}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank, name in enumerate(hosts)
    ]  # fmt: skip
    written = [process.communicate(timeout=240) for process in processes]
    assert [p.returncode for p in processes] == [0, 0], written
    assert written[1][0] == ""
    answer = json.loads(written[0][0])
    one = subprocess.run(
        [sys.executable, "-m", "curvcli", *command], env=shared, capture_output=True, text=True, check=True
    )  # fmt: skip
    alone = json.loads(one.stdout)
    values = [[pair["value"] for pair in found["result"]["top"]] for found in (answer, alone)]
    # The promise for float32.
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert answer["cost"]["processes"]["count"] == 2
