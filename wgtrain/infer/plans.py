"""What plans of inference have in common: a head, kernels that suit them, a way to a device."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from wgtrain.engine.graph import Graph, Window, padded
from wgtrain.engine.loss import head_logits
from wgtrain.engine.plan import Plan
from wgtrain.engine.tuning import Tuning
from wgtrain.gpu import Device
from wgtrain.model.config import ModelConfig
from wgtrain.model.forward import Network
from wgtrain.model.host import Host
from wgtrain.model.layers import RopeTables


class Planned(Protocol):
    """What has a plan, of which nothing is allocated yet."""

    plan: Plan
    tuning: Tuning


P = TypeVar("P", bound=Planned)


def tuned(
    make: Callable[[Tuning | None], P], device: Device, host: Host, max_row: int, replays: int = 0
) -> P:
    """What `make` makes with the table that the host knows for it, of rows up to `max_row` tokens;
    `replays` as in `Host.choose_tuning`.
    """
    made = make(None)
    tuning = host.choose_tuning(device, made.plan, max_row, replays, "auto")
    return made if tuning.table == made.tuning.table else make(tuning)


async def build(plan: Plan, ropes: RopeTables, device: Device) -> None:
    """Allocates and compiles; leaves nothing behind where it fails or is cut short."""
    try:
        await plan.build(device)
        ropes.write(device)
    except BaseException:
        plan.close()
        raise


def record_head(
    g: Graph, config: ModelConfig, net: Network, hidden: Window, index: Window, logits: Window
) -> None:
    """Logits (C, V) of the rows `index` (C,) of hidden states (T, D)."""
    picked = g.tensor("picked", "C", config.width)
    params = {"rows": "C", "d4": padded(config.width) // 4}
    g.launch("gather_rows", {"x": hidden, "index": index, "y": picked}, params)
    head_logits(g, picked, net.head, logits, config.softcap)
