"""What products of networks of 7 to 400 billion weights would take on 8 to 512 devices: reckoned, not measured.

    python benchmarks/larger.py

The counts are measured (`docs/several-processes.md`); what a device does is assumed, and named here.
"""

from typing import NamedTuple

# Measured on GPT-2 of twelve blocks, a product whose graph is built again: weights and vectors gathered, and sums of
# which each process keeps its share, in lengths of all weights.
GATHERS, SUMS = 4.58, 2.0
# Matrix products of a layer, forward and back twice, in units of its forward pass.
UNITS = 9
# Vectors alive beside the basis, as the planner counts them, and the weights themselves.
VECTORS = 8
# Products of ten eigenvalues on the networks of the benchmark, checks included; vectors of a basis, at least and often.
PRODUCTS, SMALLEST, USUAL = 60, 13, 40
# Numbers that a graph of first derivatives keeps for each token, in widths of the network times its layers.
KEPT = 70

WIDTH = 4
"""Bytes of a number: float32."""
MEMORY = 80e9 * 0.9
"""Bytes of a device that can be used."""
SPEED = 67e12 / 2
"""Operations a second: half of the peak of an H100 in float32, without TF32."""
INSIDE, OUTSIDE = 300e9, 40e9
"""Bytes a second that a device sends to others of its host (8 devices), and to other hosts."""
SEQUENCE, SEQUENCES = 256, 1024
"""Tokens of a sample, one of which a device differentiates at a time; and samples."""


class Network(NamedTuple):
    """A decoder by its size."""

    weights: float
    layers: int
    width: int


NETWORKS = {
    "7 billion": Network(7e9, 32, 4096),
    "70 billion": Network(70e9, 80, 8192),
    "400 billion": Network(400e9, 126, 16384),
}
DEVICES = (8, 32, 128, 512)


class Reckoned(NamedTuple):
    """One network on so many devices."""

    smallest: float
    """Bytes of a device with the smallest basis,"""
    usual: float
    """and with the usual one."""
    compute: float
    """Seconds of a product,"""
    exchange: float
    """and seconds of sending in it, none of it hidden behind computing."""


def reckoned(network: Network, devices: int) -> Reckoned:
    """Memory and time of a product over all samples."""
    share = WIDTH * network.weights / devices
    block = WIDTH * network.weights / network.layers
    graph = KEPT * WIDTH * SEQUENCE * network.width * network.layers
    # Two blocks gathered, a vector and a gradient of one.
    beside = (1 + VECTORS) * share + 4 * block + graph
    rounds = -(-SEQUENCES // devices)
    link = INSIDE if devices <= 8 else OUTSIDE
    sent = rounds * (GATHERS + SUMS) * WIDTH * network.weights * (devices - 1) / devices
    work = rounds * SEQUENCE * UNITS * 2 * network.weights
    return Reckoned(beside + SMALLEST * share, beside + USUAL * share, work / SPEED, sent / link)


def table() -> str:
    """All networks and devices, as Markdown."""
    lines = [
        f"| weights | devices | a device holds (basis of {SMALLEST}, of {USUAL}) | a product: computing, sending "
        f"| ten eigenvalues ({PRODUCTS} products) |",
        "|:---|---:|---:|---:|---:|",
    ]
    for name, network in NETWORKS.items():
        for devices in DEVICES:
            r = reckoned(network, devices)
            fits = r.smallest <= MEMORY
            time = (
                f"{PRODUCTS * (r.compute + r.exchange) / 3600:,.1f} h" if fits else "does not fit"
            )
            lines.append(
                f"| {name} | {devices} | {r.smallest / 1e9:,.0f} GB, {r.usual / 1e9:,.0f} GB "
                f"| {r.compute:,.0f} s, {r.exchange:,.0f} s | {time} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
