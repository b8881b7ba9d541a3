"""What can be known of a launch before it costs anything: its checks, a dry run of it, and launches that were cut.

Nothing here changes anything outside: the account is read, the offer is priced again, the parcel is made and not sent.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from remote.deeds import DeedResult
from remote.desk import Desk
from remote.doctor import Check
from remote.journal import DeedRecord, Journal
from remote.launch import Launch, choose_image
from remote.remote_run import PASSED_ON, resolve_order
from remote.rent import check_offer
from remote.ship import our_code, work_tree
from remote.sizing import disk_gb
from runner.errors import NotFoundError, TunewatchError
from runner.recipe import Recipe

HUB = "https://huggingface.co"
_HUB_S = 8.0


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A launch that no living process carries out."""

    deed: str
    run: str
    recipe: str
    offer: str
    step: str
    """The last step that its journal knows."""
    instance: int | None
    """The box it rented, where the answer of the provider was heard."""
    usd_per_h: float | None
    asked: bool
    """Whether a box was asked for: then one may exist and bill."""

    def in_words(self) -> str:
        """One sentence: what was cut, and what bills."""
        if self.instance is not None:
            price = f" bills ${self.usd_per_h:.4f}/h" if self.usd_per_h is not None else " bills"
            return f"The launch of {self.run} was cut at '{self.step}'; instance {self.instance}{price}."
        if self.asked:
            return f"The launch of {self.run} was cut at '{self.step}'; a box may exist and bill."
        return f"The launch of {self.run} was cut before anything was rented."


def unfinished_launches(journal: Journal) -> tuple[Unfinished, ...]:
    """Launches to carry on or to undo, the oldest first. Reads the journal alone."""
    return tuple(_unfinished(journal, one) for one in journal.open_deeds("launch") if not journal.under_way(one.id))


def unfinished_launch(journal: Journal, run: str) -> Unfinished:
    """The cut launch of a run, by its name or the end of it. Raises NotFoundError."""
    known = unfinished_launches(journal)
    fits = [one for one in known if run in (one.run, one.deed) or one.run.endswith(f"/{run}")]
    if fits:
        return fits[-1]
    named = ", ".join(one.run for one in known)
    raise NotFoundError(
        f"There is no launch of {run} that was cut.", hint=f"Cut are: {named}." if named else "None was cut."
    )


def _unfinished(journal: Journal, record: DeedRecord) -> Unfinished:
    data = record.data
    instance = data.get("instance_id")
    box = journal.box(instance) if isinstance(instance, int) else None
    price = box.data.get("dph_total") if box is not None else None
    asked = data.get("launch") or {}
    return Unfinished(
        record.id,
        record.run,
        str((asked.get("order") or {}).get("recipe", "")),
        str((asked.get("plan") or {}).get("offer_id", "")),
        str(data.get("step", "begin")),
        instance if isinstance(instance, int) else None,
        float(price) if isinstance(price, int | float) else None,
        bool(data.get("label")) and data.get("answer") != "refused",
    )


def travelling(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The names of the variables that will reach the run; their values are nobody's business here."""
    return tuple(name for name in PASSED_ON if environment.get(name))


def checks(
    recipe: Recipe, credit: Callable[[], float | None], environment: Mapping[str, str], *, budget: float | None
) -> Iterator[Check]:
    """What would stop a launch of `recipe`, one after the other as it is found; never raises for what it finds.

    `credit` asks the account for its USD. `budget` is in USD.
    """
    yield Check("recipe", "good", what_it_does(recipe))
    yield _credit(credit, budget)
    yield _parcel(recipe)
    yield Check("disk", "good", f"{disk_gb(recipe):.0f} GB are rented with the box; the price contains them")
    names = travelling(environment)
    said = f"{', '.join(names)} (by name)" if names else "none of yours is needed"
    yield Check("variables", "good", said)
    yield from _hub(recipe, environment)


def what_it_does(recipe: Recipe) -> str:
    """A recipe in one line."""
    if recipe.kind == "command":
        return f"{recipe.name}: {' '.join(recipe.command)}"
    if not recipe.trains:
        return f"{recipe.name}: evaluates {recipe.model.base}, mask {recipe.mask}"
    rule = recipe.stop_rule
    stop = f", stops after {rule.patience} evals without gain" if rule is not None else ""
    return f"{recipe.name}: {recipe.model.base}, {recipe.max_steps:,} steps at most{stop}"


def _credit(ask: Callable[[], float | None], budget: float | None) -> Check:
    try:
        credit = ask()
    except TunewatchError as error:
        return Check("account", "bad", error.message, error.hint)
    if credit is None:
        return Check("account", "note", "the key works; the balance is not told")
    wanted = budget if budget is not None else 1.0
    if credit < wanted:
        return Check(
            "account", "bad", f"${credit:.2f} left, ${wanted:.2f} needed", "At zero every box stops: add credit."
        )
    return Check("account", "good", f"${credit:.2f} left")


def _parcel(recipe: Recipe) -> Check:
    try:
        parcels = [our_code(), *([work_tree(recipe.workdir)] if recipe.kind == "command" else [])]
    except TunewatchError as error:
        return Check("parcel", "bad", error.message, error.hint)
    size, files = sum(len(one.data) for one in parcels), sum(one.files for one in parcels)
    return Check("parcel", "good", f"{files} files, {size / 1e6:.1f} MB to send")


def _hub(recipe: Recipe, environment: Mapping[str, str]) -> Iterator[Check]:
    token = environment.get("HF_TOKEN", "")
    repo = recipe.train.hf_repo_id
    foreign = recipe.kind == "command" or recipe.model.base == "demo"
    if not token:
        if repo:
            yield Check("Hub token", "bad", f"no HF_TOKEN; uploads to {repo} need one", "export HF_TOKEN=...")
        elif not foreign:
            yield Check("Hub token", "note", "no HF_TOKEN: a gated model cannot be read", "export HF_TOKEN=...")
        return
    yield Check("Hub token", "good", "HF_TOKEN is set")
    if repo:
        yield hub_repository(repo, token, environment.get("HF_ENDPOINT") or HUB)


def hub_repository(repo: str, token: str, endpoint: str) -> Check:
    """Whether the Hub knows a model repository; the answer of the Hub itself within some seconds."""
    if not endpoint.startswith(("https://", "http://")):
        return Check("Hub repository", "bad", f"HF_ENDPOINT is no address: {endpoint}")
    request = urllib.request.Request(  # noqa: S310 - looked at above
        f"{endpoint.rstrip('/')}/api/models/{repo}", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_HUB_S) as answer:  # noqa: S310
            private = json.loads(answer.read(1 << 20)).get("private")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404):
            return Check("Hub repository", "note", f"{repo} is not there yet, or this token may not see it; it is made")
        return Check("Hub repository", "note", f"the Hub answers {error.code} for {repo}")
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        return Check("Hub repository", "note", f"{endpoint} cannot be asked from here: {why}")
    return Check(
        "Hub repository", "good", f"{repo} is there{', private' if private else ', PUBLIC' if private is False else ''}"
    )


def dry_run(desk: Desk, request: Launch, environment: Mapping[str, str]) -> DeedResult:
    """Everything of a launch that costs nothing, with the same calls: what is said here is what will happen.

    Raises what the launch itself would raise before it rents.
    """
    plan = request.plan
    with desk.step("recipe") as note:
        recipe = resolve_order(request.order, environment)
        note.detail = what_it_does(recipe)
    with desk.step("offer", f"{plan.offer_id}") as note:
        offer = check_offer(desk, plan)
        plan = replace(plan, image=choose_image(offer, plan.image))
        note.detail = f"{offer.num_gpus}x {offer.gpu_name}, ${offer.dph_total:.4f}/h with {plan.disk_gb:g} GB"
    with desk.step("image", plan.image):
        pass
    with desk.step("parcel") as note:
        found = _parcel(recipe)
        note.ok, note.detail = found.finding != "bad", found.found
    with desk.step("variables") as note:
        note.detail = ", ".join(travelling(environment)) or "none"
    with desk.step("limits") as note:
        note.detail = limits_in_words(request)
    return desk.result(ok=True, state="done", run=request.plan.run, instance_id=None)


def limits_in_words(request: Launch) -> str:
    """What ends the box by itself."""
    wishes = request.wishes
    said = [f"${wishes.budget_usd:.2f}"] if wishes.budget_usd is not None else []
    said += [f"{wishes.deadline_s / 3600:.1f} h"] if wishes.deadline_s is not None else []
    said += [f"{wishes.idle_s / 60:.0f} min without a step"] if wishes.idle_s is not None else []
    return f"ends itself at {' or '.join(said)}" if said else "none: it bills until the run ends, or you end it"


def recipes_here(folder: Path) -> tuple[str, ...]:
    """Names of our recipes, then the recipe files that lie in `folder`."""
    from runner.config import recipe_names

    own = sorted(
        path.name
        for path in folder.glob("*.toml")
        if path.name not in ("pyproject.toml", "settings.toml", "hosts.toml")
    )
    return (*recipe_names(), *own)
