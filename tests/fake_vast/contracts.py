"""What is done about a contract that stands: bids, and the requests of hosts for a higher price."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fake_vast.world import Box, World

MONTH_S = 30 * 86400.0


def ask_for_more(world: World, box: Box, usd_per_h: float) -> int:
    """The host of a box asks for a higher price of its GPU; returns the number of the request."""
    number = 900 + len(world.price_increases) + len(world.answered)
    storage = box.disk_usd_per_h / 3600
    world.price_increases.append(
        {
            "pending_price_increase_id": number, "contract_id": box.id, "host_id": box.offer["host_id"],
            "old_gpu_costpersec": box.dph_base / 3600, "new_gpu_costpersec": usd_per_h / 3600,
            "old_disk_ram_costpersec": storage, "new_disk_ram_costpersec": storage,
            "new_bwu_cost": None, "new_bwd_cost": None, "new_platform_fee": None, "contract_end_date": box.end_date,
            "ask_end_date": None if box.end_date is None else box.end_date + MONTH_S, "created_at": world.clock(),
        }
    )  # fmt: skip
    return number


def answer(world: World, body: Any, *, accept: bool) -> dict[str, Any]:
    """Take an answer. The new price counts from the end of the contract on, which then goes on for a month."""
    from tests.fake_vast.server import refusal

    if not isinstance(body, dict) or set(body) != {"pending_price_increase_id"}:
        raise refusal(400, "invalid_args", "extra fields not permitted")
    number = body["pending_price_increase_id"]
    row = next((r for r in world.price_increases if r["pending_price_increase_id"] == number), None)
    if row is None:
        raise refusal(404, "no_pending_price_increase", "There is no pending price increase of this number.")
    world.price_increases.remove(row)
    world.answered.append((number, accept))
    box = world.boxes[row["contract_id"]]
    if accept and box.end_date is not None:
        end = box.end_date
        # the old end does not stop it any more
        box.events = [event for event in box.events if event[0] != end]
        box.end_date = end + MONTH_S
        box.events.append((end, lambda: box.rebid(row["new_gpu_costpersec"] * 3600)))
        box.events.append((box.end_date, lambda: world.halt(box)))
    return {"success": True, "pending_price_increase_id": number, "contract_id": box.id}


def bid(world: World, box: Box, price: Any) -> dict[str, Any]:
    """Another bid: one that is too low stops the box, one that wins brings a stopped one back."""
    from tests.fake_vast.server import refusal

    if not box.is_bid:
        raise refusal(400, "invalid_args", "This contract is not interruptible.")
    least = float(box.offer["min_bid"])
    price = least if price is None else float(price)
    if not 0.001 <= price <= 32.0 * int(box.offer["num_gpus"]):
        raise refusal(400, "invalid_price", "price is out of range")
    world.meter(box, world.clock())
    box.rebid(price)
    if price < least:
        world.stop(box)
    elif box.intended == "stopped":
        world.start(box)
    return {"success": True}
