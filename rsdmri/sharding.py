"""Weights that are split over processes (FSDP2), and the same tensors whole.

Every process keeps a part of each weight, of its gradient and of its moments; a block of a network is put together where it computes, and
let go again. What is written is whole, so that a checkpoint does not know of how many processes it came. Tensors that are not split pass
through everything here, and torch's part for them, which takes longer to import than all else, is not imported before it is needed.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def split(network: nn.Module, processes: int) -> Any:
    """Splits a network, in place, over all processes: each of its ``units()`` where it has them, and the rest. Returns it as FSDPModule."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(network.parameters()).device.type, (processes,))
    # Resharded after every pass, the outermost too: a pass without gradients would leave weights behind that the next step makes stale.
    for unit in getattr(network, "units", list)():
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    return fully_shard(network, mesh=mesh, reshard_after_forward=True)


def whole(tree: Mapping[str, Any], keep: bool = True) -> dict[str, Any]:
    """Nested tensors, those that are split put together, one at a time, in the memory of the CPU.

    All processes must call it; without ``keep`` the one that does gets nothing of them.
    """
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found[name] = whole(value, keep)
        elif _is_split(value):
            full = local(value.detach())
            found[name] = full.cpu() if keep else full.new_empty(0)
        else:
            found[name] = value
    return found


def placed(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, split as ``like`` is; every process has it and takes its own part."""
    if not _is_split(like):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def load_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """``module.load_state_dict`` of whole tensors, strict."""
    own = module.state_dict()
    module.load_state_dict({name: placed(value, own[name]) if name in own else value for name, value in state.items()})


def local(value: Tensor) -> Tensor:
    """A tensor that all processes put together, as an ordinary one."""
    return value.full_tensor() if _is_split(value) else value  # type: ignore[attr-defined]


def known_to_all(value: Tensor, like: Tensor) -> Tensor:
    """A scalar, equal in all processes, for arithmetic with tensors that are split as ``like`` is."""
    if not _is_split(like):
        return value
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(like, DTensor)
    return DTensor.from_local(value, like.device_mesh, [Replicate()], run_check=False)


def _is_split(value: Any) -> bool:
    return hasattr(value, "full_tensor")
