"""Several processes that train one model."""

import torch
from torch import distributed


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def leads() -> bool:
    """Whether this process is the one that measures."""
    return not _together() or distributed.get_rank() == 0


def agreed(flag: bool, device: torch.device) -> bool:
    """What the process that measures has found, in all of them."""
    if not _together() or distributed.get_world_size() == 1:
        return flag
    told = torch.tensor([flag], dtype=torch.int32, device=device)
    distributed.broadcast(told, 0)
    return bool(told.item())
