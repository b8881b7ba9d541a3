"""How every command opens the screens: with the settings of this laptop and the offers it quotes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tui.session import Session, WatchPlan


def new_session(offers_file: str | None = None) -> Session:
    """A session with the offers of `offers_file`, of the settings, or of the bundled market.

    Raises UsageError for settings or offers that cannot be used, with file, line and key.
    """
    from remote.home import home
    from remote.market import load_offers
    from remote.settings import load_settings
    from tui.layout import Layout
    from tui.session import Session

    settings = load_settings()
    chosen = offers_file or settings.text("market.offers")
    offers = load_offers(chosen or None)
    return Session(
        offers,
        interval=settings.number("watch.front"),
        theme=settings.text("look.theme"),
        offers_from=chosen,
        layout=Layout(home()),
    )


def quicken() -> None:
    """Start without the garbage collector: it walks the growing heap of imports again and again and finds nothing.

    The application switches it on at its first frame, with what lives by then set aside for good.
    """
    import gc

    gc.disable()


def show(plan: WatchPlan | None, session: Session | None = None) -> None:
    """Open the screen of one run, or the list of runs."""
    quicken()
    from remote.home import home
    from tui.app import TunewatchApp
    from tui.seat import Seat

    session = session or new_session()
    # what is recorded can be acted on by nobody
    app = TunewatchApp(session, plan=plan, seat=None if session.recorded else Seat(home()))
    app.run()
    if app.return_code:
        from tui.leaving import FAULT

        raise SystemExit(FAULT)


def run_app() -> None:
    """Open the control room on the list of runs."""
    from tui.commands.watch import need_terminal

    need_terminal("See tunewatch --help for what works without one.")
    show(None)
