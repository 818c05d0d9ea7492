"""Who holds an alias of a registered model: gate, promotion and rollback, with a record of every move.

An alias in MLflow is whatever the last writer said, with no history. Here every move of it is a row of the
run database, written while this process alone may move that alias (``RunStore.exclusive``), so that rows lead
from one holder to the next. A move that another program made has no row; ``watching`` finds it.
"""

import dataclasses
import getpass
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mario_dist.errors import UserError
from mario_dist.evaluation import Gate, objections
from mario_dist.registry import ModelRegistry, PackageError, Reference, RegistryUnavailable, Version
from mario_dist.store import PromotionEvent, PromotionRow, PromotionVerdict, RunStore, StoreUnavailable
from mario_dist.system.judging import Policy, judge, remember, remembered
from mario_dist.system.models import fetched_policy, verify, weights_sha256

Judge = Callable[[Policy], Mapping[str, Any]]
"""The report of a policy by a gate's protocol."""


@dataclass(frozen=True, slots=True)
class Alias:
    """An alias of a model, in a registry and in the run database that has its audit."""

    registry: ModelRegistry
    store: RunStore
    model: str
    name: str

    def __str__(self) -> str:
        return f"{self.model}@{self.name}"

    def holder(self) -> int | None:
        return self.registry.holder(self.model, self.name)

    def version(self, number: int) -> Version:
        return self.registry.version(Reference(self.model, number, None))

    def rows(self) -> list[PromotionRow]:
        """Its audit, oldest first; of a registry of the same name elsewhere, nothing."""
        rows = self.store.promotions(self.model, self.name)
        return [row for row in rows if row.registry == self.registry.where]

    def recorded(self) -> int | None:
        """Its holder as the audit knows it."""
        return next((row.to_version for row in reversed(self.rows()) if row.moved), None)

    def move(self, row: PromotionRow) -> PromotionRow:
        """Give it to ``row.to_version``, and keep the row. Hold it for this process meanwhile."""
        self.registry.move(self.model, self.name, row.to_version)
        return self.store.add_promotion(row)

    def row(
        self,
        event: PromotionEvent,
        verdict: PromotionVerdict,
        before: int | None,
        after: int | None,
        *,
        reason: str = "",
        actor: str | None = None,
        moved: bool = True,
        report: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> PromotionRow:
        return PromotionRow(
            model=self.model,
            alias=self.name,
            event=event,
            actor=actor,
            from_version=before,
            to_version=after,
            moved=moved,
            verdict=verdict,
            reason=reason,
            run_id=run_id,
            registry=self.registry.where,
            report=report,
        )


def this_person() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def gate_judge(gate: Gate, store: RunStore, *, again: bool = False) -> Judge:
    """Plays a gate's protocol, unless the run store remembers what came of it for this very network.

    again: plays it in any case.
    """

    def report(policy: Policy) -> Mapping[str, Any]:
        protocol = gate.asks(policy.config.env.levels)
        # A version's number may come again, with another network, after its model was deleted.
        named = dataclasses.replace(policy, source=f"weights:{weights_sha256(policy.network)}")
        known = None if again else remembered(named, protocol, store)
        if known is not None:
            return known
        played = judge(policy, protocol)
        remember(named, played, store, None)
        return dataclasses.asdict(played)

    return report


def promote(
    alias: Alias,
    number: int,
    gate: Gate,
    *,
    force: bool = False,
    reason: str = "",
    note: Callable[[str], None],
) -> PromotionRow:
    """Give ``alias`` to a version that is what was registered and passes the gate.

    force: where it does not pass the gate, too; a version that is not what was registered is refused always.
    A refusal is kept in the audit. Raises ``UserError``.
    """
    actor = this_person()
    version = alias.version(number)
    if alias.holder() == number:
        raise UserError(f"{alias} is version {number} already")
    try:
        policy = verify(alias.registry, version)
    except PackageError as error:
        with alias.store.exclusive(str(alias)):
            alias.store.add_promotion(_refusal(alias, number, str(error), actor))
        raise
    note(f"{version.target} is what was registered; now the gate: {gate.protocol}")
    report = gate_judge(gate, alias.store, again=True)(policy)
    while True:
        champion = alias.holder()
        if champion == number:
            raise UserError(f"{alias} is version {number} already")
        problems = problems_of(alias, gate, report, champion, number)
        with alias.store.exclusive(str(alias)):
            if alias.holder() != champion:
                continue  # another one was promoted meanwhile: ask the gate about that one
            if problems and not force:
                refusal = _refusal(alias, number, "; ".join(problems), actor, report, policy.run_id)
                alias.store.add_promotion(refusal)
                raise UserError(
                    f"{version.target} is not promoted: {'; '.join(problems)} (--force --reason TEXT does it"
                    " all the same)"
                )
            _catch_up(alias, champion)
            said = "; ".join([reason, *problems]) if problems else reason
            return alias.move(
                alias.row(
                    "promote",
                    "forced" if problems else "passed",
                    champion,
                    number,
                    reason=said,
                    actor=actor,
                    report=report,
                    run_id=policy.run_id,
                )
            )


def rollback(alias: Alias, to: int | None = None, *, reason: str = "") -> PromotionRow:
    """Give ``alias`` back to the version that had it before the present one, or to the one that is named.

    It must still be what was registered; no gate is asked. Raises ``UserError``.
    """
    held = alias.holder()
    target = to if to is not None else next(iter(predecessors(alias.rows(), held)), None)
    if target is None:
        raise UserError(f"the audit knows of no version that was {alias} before; name one with --to")
    if target == held:
        raise UserError(f"{alias} is version {target} already")
    policy = verify(alias.registry, alias.version(target))
    with alias.store.exclusive(str(alias)):
        if alias.holder() != held:
            raise UserError(
                f"{alias} was changed just now; look at 'mario-dist models history {alias.model}'"
            )
        _catch_up(alias, held)
        return alias.move(
            alias.row(
                "rollback",
                "verified",
                held,
                target,
                reason=reason,
                actor=this_person(),
                run_id=policy.run_id,
            )
        )


def predecessors(rows: Sequence[PromotionRow], held: int | None) -> list[int]:
    """The versions that had the alias before ``held``, newest first: those that passed or were forced, and
    without what was rolled back."""
    line: list[int] = []
    for row in rows:
        if not row.moved or row.to_version is None:
            continue
        if row.event in ("rollback", "put back") and row.to_version in line:
            del line[line.index(row.to_version) + 1 :]
        elif row.verdict in ("passed", "forced", "verified"):
            line.append(row.to_version)
    while line and line[-1] == held:
        line.pop()
    return list(dict.fromkeys(reversed(line)))


def problems_of(
    alias: Alias,
    gate: Gate,
    report: Mapping[str, Any],
    champion: int | None,
    number: int,
) -> list[str]:
    """What the gate objects to. ``champion``: the version that ``number`` shall follow."""
    if champion is None or champion == number or not gate.not_worse:
        return objections(gate, report, None)
    try:
        theirs = gate_judge(gate, alias.store)(fetched_policy(alias.registry, alias.version(champion)))
    except (RegistryUnavailable, StoreUnavailable):
        raise  # says nothing of the champion
    except UserError as error:
        found = objections(gate, report, None)
        return [*found, f"the champion, version {champion}, cannot be compared with: {error}"]
    return objections(gate, report, theirs)


def _catch_up(alias: Alias, held: int | None) -> None:
    """A row for a change that another program made and no watcher has seen, so that rows lead on."""
    recorded = alias.recorded()
    if held != recorded:
        reason = "found when the alias was moved next"
        alias.store.add_promotion(alias.row("changed", "unverified", recorded, held, reason=reason))


def _refusal(
    alias: Alias,
    number: int,
    reason: str,
    actor: str,
    report: Mapping[str, Any] | None = None,
    run_id: str | None = None,
) -> PromotionRow:
    return alias.row(
        "promote",
        "failed",
        alias.holder(),
        number,
        moved=False,
        reason=reason,
        actor=actor,
        report=report,
        run_id=run_id,
    )
