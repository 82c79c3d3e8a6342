"""What the planner knows of GPUs beside their speed: memory, and how fast they reach others."""

from typing import NamedTuple


class Links(NamedTuple):
    """Memory of a GPU; bytes/s that it sends to others of its node, and to other nodes; seconds of
    a hop to either."""

    memory: float
    node: float
    network: float
    node_hop: float = 3.4e-6
    network_hop: float = 14e-6


# NVLink, half of the data sheets' sum of both ways; one network card a GPU, as in NVIDIA's DGX.
# Hops: NCCL's own model (src/graph/tuning.cc, hwLat, rings, the simple protocol).
LINKS = {
    "B200": Links(180e9, 900e9, 50e9),
    "H200": Links(141e9, 450e9, 50e9),
    "H100": Links(80e9, 450e9, 50e9),
    "A100": Links(80e9, 300e9, 25e9),
}
