"""`tunewatch offers`: the live market, each offer with its finish time and bill."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tui.commands.common import emit_json, json_option

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from remote.provider import MarketOffer
    from runner.recipe import Recipe


@click.command(short_help="The live market with quotes.")
@click.argument("target", required=False)
@click.option("--for", "recipe_name", default="stage5", show_default=True, help="Recipe the quotes are made for.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the recipe.")
@click.option("--gpu", help="Name as the market writes it, for example RTX_4090.")
@click.option("--max-price", type=click.FloatRange(min=0), help="USD per hour, the disk in it.")
@click.option("--min-vram", type=click.FloatRange(min=0), help="GB per GPU.")
@click.option("--min-reliability", type=click.FloatRange(0, 1), help="0 to 1.")
@click.option("--verified/--unverified", default=True, show_default=True, help="Only hosts the provider verified.")
@click.option("--region", help="Two letters of a country.")
@click.option("--interruptible", is_flag=True, help="Contracts that a higher bid ends, at their least bid.")
@click.option("--disk", type=click.FloatRange(min=8), help="GB; by default what the recipe needs.")
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True, help="GPUs in the box.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Rows to show.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Steps/s on an A100 SXM4 40 GB.")
@click.option("--budget", type=click.FloatRange(min=0), help="USD; adds the chance to stay under it.")
@click.option("--deadline", help="90s, 45m, 10h or an ISO time; adds the chance to be done before.")
@json_option
def command(
    target: str | None,
    recipe_name: str,
    settings: tuple[str, ...],
    gpu: str | None,
    max_price: float | None,
    min_vram: float | None,
    min_reliability: float | None,
    verified: bool,
    region: str | None,
    interruptible: bool,
    disk: float | None,
    gpus: int,
    limit: int,
    rate: float | None,
    budget: float | None,
    deadline: str | None,
    as_json: bool,
) -> None:
    """List what can be rented now, cheapest bill first, priced with the disk that will be created. With TARGET the
    quotes are for moving that live run, measured on it; without one for a new run of the recipe. Machines of your own
    (hosts.toml) stand in the same table as host:NAME, and are launched on in the same way.

    \b
    tunewatch offers --max-price 1 --min-vram 40
    tunewatch offers box:/root/run/log.txt --budget 5 --json
    """
    from remote.listing import read_market
    from remote.provider import Wanted
    from remote.sizing import disk_gb
    from runner.config import load_recipe
    from tui.cloud import open_desk

    recipe = load_recipe(recipe_name, settings)
    wanted = Wanted(
        gpu=gpu, max_price=max_price, min_vram_gb=min_vram, min_reliability=min_reliability, verified=verified,
        region=region, spot=interruptible, disk_gb=disk if disk is not None else disk_gb(recipe), num_gpus=gpus,
    )  # fmt: skip
    with open_desk() as desk:
        listing = read_market(desk, wanted)
    market = list(listing.offers)
    quotes = quote(market, recipe, target=target, rate=rate, budget=budget, deadline=deadline, setup=listing.setup)
    by_id = {str(q["offer_id"]): q for q in quotes}
    order = {str(q["offer_id"]): place for place, q in enumerate(quotes)}
    market.sort(key=lambda offer: order.get(offer.as_typed, len(order)))
    if as_json:
        rows = [
            {**offer.row, "id": offer.as_typed if offer.own else offer.id, "machine_id": offer.machine_id,
             "disk_gb": offer.disk_gb, "quote": by_id.get(offer.as_typed)}
            for offer in market
        ]  # fmt: skip
        emit_json({"offers": rows, "quotes": quotes})
        return
    if not market:
        click.echo("No offer fits. Fewer conditions show more: see tunewatch offers --help.", err=True)
        return
    for line in lines(market[:limit], by_id):
        click.echo(line)
    if len(market) > limit:
        click.echo(f"{len(market) - limit} more: --limit {len(market)}", err=True)


def quote(
    market: Sequence[MarketOffer], recipe: Recipe, *, target: str | None, rate: float | None, budget: float | None,
    deadline: str | None, setup: Mapping[int, float] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Quotes in the shape of `estimate --json`, cheapest first. `setup` has the hours a machine took before."""
    from remote.listing import as_offers, quote_offers
    from tui.cloud import seconds_from_now
    from tui.commands.estimate import read_history

    if not market:
        return []
    within = seconds_from_now(deadline)
    forecast = quote_offers(
        as_offers(market, setup or {}), recipe, market[0].disk_gb, read_history(target) if target else None,
        rate=rate, budget=budget, deadline_h=None if within is None else within / 3600,
    )  # fmt: skip
    rows = [q.to_json() for q in forecast.quotes]
    return sorted(rows, key=lambda row: row["usd"]["base"])


def lines(market: Sequence[MarketOffer], quotes: dict[str, dict[str, Any]]) -> list[str]:
    """The table for people."""
    wide = max(9, *(len(offer.as_typed) for offer in market))
    head = (
        f"{'offer':>{wide}}  {'gpu':<15} {'GB':>4} {'$/h':>7}  {'hours opt/base/pess':>20}  {'USD opt/base/pess':>21}  "
        f"{'fits':<7} {'rel.':>5}  place"
    )
    out = [head]
    for offer in market:
        found = quotes.get(offer.as_typed)
        hours = usd = fits = "-"
        if found is not None:
            hours = " / ".join(f"{found['hours'][k]:.1f}" for k in ("opt", "base", "pess"))
            usd = " / ".join(f"{found['usd'][k]:.2f}" for k in ("opt", "base", "pess"))
            fits = found["fits"]
        name = offer.gpu_name if offer.num_gpus == 1 else f"{offer.num_gpus}x {offer.gpu_name}"
        reliability = "-" if offer.reliability is None else f"{offer.reliability:.3f}"
        out.append(
            f"{offer.as_typed:>{wide}}  {name:<15.15} {offer.gpu_ram_mb / 1024:>4.0f} {offer.dph_total:>7.4f}  "
            f"{hours:>20}  {usd:>21}  {fits:<7} {reliability:>5}  {offer.place}".rstrip()
        )
    return out
