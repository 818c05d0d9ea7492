"""The watch over aliases that anyone may change, in MLflow's UI too."""

import time
from collections.abc import Callable, Sequence

from mario_dist.errors import UserError
from mario_dist.evaluation import Gate
from mario_dist.registry import ModelRegistry, PackageError, RegistryUnavailable
from mario_dist.store import PromotionRow, PromotionVerdict, RunStore, StoreUnavailable
from mario_dist.system.models import verify
from mario_dist.system.promotion import Alias, gate_judge, predecessors, problems_of
from mario_dist.system.stop import stop_on_signals


class Watcher:
    """Follows an alias that anyone may change, in MLflow's UI too.

    A change that no row of the audit tells of is verified: the version must be what was registered and pass
    the gate. put_back: where it does not, the alias goes back to the newest version before it that passed and
    still is what was registered, and is removed where there is none.
    """

    def __init__(
        self, alias: Alias, gate: Gate, *, put_back: bool = False, note: Callable[[str], None]
    ) -> None:
        self.alias = alias
        self._gate = gate
        self._put_back = put_back
        self._note = note

    def look(self) -> list[PromotionRow]:
        """Deal with what has changed since the audit's newest row. Returns the rows that it wrote."""
        alias = self.alias
        rows = alias.rows()
        recorded, held = alias.recorded(), alias.holder()
        if held == recorded:
            return self._finish(rows)
        with alias.store.exclusive(str(alias)):
            # Whoever moves it with a row holds it from the move to the row.
            recorded, held = alias.recorded(), alias.holder()
        if held == recorded:
            return []
        verdict = self._judge(held, recorded)
        with alias.store.exclusive(str(alias)):
            if (alias.recorded(), alias.holder()) != (recorded, held):
                return []  # it went on meanwhile, and the next look will see where
            written = alias.store.add_promotion(verdict)
        if verdict.verdict == "failed" and not self._put_back:
            self._note(
                f"{alias} stays so: 'mario-dist models rollback {alias.model}' moves it, and --put-back would"
            )
        return [written, *self._finish([*rows, written])]

    def _judge(self, held: int | None, recorded: int | None) -> PromotionRow:
        alias = self.alias
        if held is None:
            return alias.row("changed", "unverified", recorded, None, reason="the alias was removed")
        self._note(f"{alias} is version {held} now, and was {recorded or 'nobody'}: verifying it")
        try:
            policy = verify(alias.registry, alias.version(held))
        except PackageError as error:
            return alias.row("changed", "failed", recorded, held, reason=str(error))
        report = gate_judge(self._gate, alias.store, again=True)(policy)
        problems = problems_of(alias, self._gate, report, recorded, held)
        return alias.row(
            "changed",
            "failed" if problems else "passed",
            recorded,
            held,
            reason="; ".join(problems),
            report=report,
            run_id=policy.run_id,
        )

    def _finish(self, rows: Sequence[PromotionRow]) -> list[PromotionRow]:
        """Put the alias back, where its newest move is a change that failed."""
        last = next((row for row in reversed(rows) if row.moved), None)
        if not self._put_back or last is None or last.event != "changed" or last.verdict != "failed":
            return []
        alias, failed = self.alias, last.to_version
        good = next((n for n in predecessors(rows, failed) if self._is_sound(n)), None)
        with alias.store.exclusive(str(alias)):
            if (alias.holder(), alias.recorded()) != (failed, failed):
                return []
            why = f"version {failed} failed" + ("" if good is not None else ", and no earlier one is good")
            verdict: PromotionVerdict = "unverified" if good is None else "verified"
            return [alias.move(alias.row("put back", verdict, failed, good, reason=why))]

    def _is_sound(self, number: int) -> bool:
        try:
            verify(self.alias.registry, self.alias.version(number))
        except (RegistryUnavailable, StoreUnavailable):
            raise
        except UserError as error:  # or it is not there any more
            self._note(str(error))
            return False
        return True


def watch(
    registry: ModelRegistry,
    store: RunStore,
    model: str | None,
    alias: str,
    gate: Gate,
    *,
    put_back: bool,
    every_s: float | None,
    note: Callable[[str], None],
    told: Callable[[PromotionRow], None],
) -> list[PromotionRow]:
    """Follow an alias of one model, or of all, until a signal, or only once where ``every_s`` is None.

    ``told`` gets each row that it writes, as it is written; they are returned too. All are those with a
    version that mario-dist registered: other teams' models are not its business. What fails is a note, and
    the next look tries again; of a single look, ``UserError`` is raised once every model was looked at.
    """
    written: list[PromotionRow] = []
    complaints: dict[str, str] = {}

    def attempt[T](what: str, act: Callable[[], list[T]]) -> list[T]:
        try:
            result = act()
        except UserError as error:
            if complaints.get(what) != str(error):
                note(f"{what}: {error}; the next look tries again")
            complaints[what] = str(error)
            return []
        complaints.pop(what, None)
        return result

    def names() -> list[str]:
        return [name for name in registry.names() if registry.has_ours(name)]

    everywhere = registry.where
    if model is not None and model not in (known := registry.names()):
        raise UserError(
            f"there is no model {model!r} in {everywhere}; models are {', '.join(known) or 'none'}"
        )
    note(f"watching {model or 'all models'}@{alias} in {everywhere}")
    with stop_on_signals() as stopped:
        while not stopped():
            for name in attempt(everywhere, names) if model is None else [model]:
                watcher = Watcher(Alias(registry, store, name, alias), gate, put_back=put_back, note=note)
                for row in attempt(name, watcher.look):
                    written.append(row)
                    told(row)
            if every_s is None:
                if complaints:
                    raise UserError("; ".join(complaints.values()))
                break
            until = time.monotonic() + every_s
            while time.monotonic() < until and not stopped():
                time.sleep(min(0.2, every_s))
    return written
