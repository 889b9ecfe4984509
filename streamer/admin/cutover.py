"""`streamer cutover`: move the writers of a sync's source to one of its targets, with a way back that loses nothing.

What can be looked at before is looked at before (cutover_preflight.py). Then the steps, in this order: keep writers from the old
node, bring the new one all that is committed there, set its sequences past the old one's, compare the rows, see that the stream
back carries, see that nobody has written after all, and open the new node. Until the last step any failure, or Ctrl-C, undoes
what was done (steps.py), so that the application goes on where it was.

The way back is the stream of another sync from the new node to the old one; going back is this command with that sync. The trap:
the old node stays read-only for clients, where it was made so, until somebody moves back.

docs/migration.md
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from streamer.admin.cutover_preflight import Options, compared, numbered, preflight, require
from streamer.admin.cutover_route import NoWayBack, Route, is_fed, route
from streamer.admin.cutover_sequences import move_past
from streamer.admin.draining import Drained, drain
from streamer.admin.findings import print_findings
from streamer.admin.interrupts import interruptible, undisturbed
from streamer.admin.nodes import Say, chosen_syncs
from streamer.admin.printing import counted
from streamer.admin.steps import Step, Undo, plan, take
from streamer.admin.writers import Writers, by_hand
from streamer.config import Config
from streamer.errors import StreamerError


def cutover(
    config: Config,
    sync: str,
    new: str,
    options: Options,
    confirm: Callable[[Sequence[str]], bool],
    say: Say,
    *,
    way_back: bool = True,
    dry_run: bool = False,
) -> bool:
    """Move the writers of a sync to the node `new`; return False if nobody wanted that in the end. With `dry_run` only tell.

    Raises StreamerError; after one the old node is as it was, or the output says what is left to be done by hand.
    """
    chosen_syncs(config, sync)
    try:
        chosen = route(config, sync, new, way_back=way_back)
    except NoWayBack as problem:
        for line in problem.lines:
            say(line)
        raise
    say("looking at both nodes, and comparing all rows …" if options.verify else "looking at both nodes …")
    found = list(preflight(config, chosen, options))
    print_findings(found, as_json=False)
    require(found)
    steps = Cutover(config, chosen, options).steps()
    lines = [f'sync "{sync}": from "{chosen.old}" to "{chosen.new}"', *plan(steps), *_asked_of_people(chosen, options)]
    if dry_run:
        for line in lines:
            say(line)
        return True
    if not confirm(lines):
        say("nothing was changed")
        return False
    with interruptible():
        take(steps, say, undisturbed)
    for line in _afterwards(chosen, options):
        say(line)
    return True


class Cutover:
    """The steps of one move, and what they must know of each other."""

    def __init__(self, config: Config, route: Route, options: Options) -> None:
        self._config = config
        self._route = route
        self._options = options
        self._old = Writers(config, route.old)
        self._drained: Drained | None = None

    def steps(self) -> list[Step]:
        """Return the steps, in order. Asks the old node what is set there. Raises StreamerError."""
        config, options = self._config, self._options
        old, new, back = self._route.old, self._route.new, self._route.back
        steps = [self._keep_out(), Step(f'bring "{new}" all that is committed on "{old}"', self._drain)]
        if numbered(config, self._route):
            title = f'set the sequences of "{new}" past those of "{old}", with a margin of {options.margin}'
            steps.append(Step(title, self._number))
        if options.verify:
            steps.append(Step("compare all rows", partial(compared, config, self._route.forth, options.wait)))
        if back is not None:
            steps.append(Step(f'see that "{old}" gets what is written on "{new}", by sync "{back.sync}"', self._see_way_back))
        steps.append(Step(f'see that nobody has written to "{old}" meanwhile', self._see_nobody_wrote))
        if config.nodes[new].kind == "postgresql":
            steps.append(self._open())
        return steps

    def _keep_out(self) -> Step:
        """By force, or by asking."""
        old, wait = self._route.old, self._options.wait
        if not self._options.block_writes:
            return Step(f'wait until nobody writes to "{old}"', self._wait_until_idle)
        before = self._old.setting
        reopening = by_hand(self._old.statement(None if before == "on" else before))
        if before == "on":
            title = f'keep writers from "{old}", which is read-only already, and stays so whatever happens; to open it: {reopening}'
            return Step(title, partial(self._close, wait))
        undo = Undo(f'"{old}" takes writes again', reopening, self._old.reopen)
        return Step(
            f'keep writers from "{old}": {self._old.statement("on")}, and end its sessions', partial(self._close, wait), undo
        )

    def _close(self, wait: float) -> str:
        return f"read-only for clients; ended {counted(self._old.close(wait), 'session')}"

    def _wait_until_idle(self) -> str:
        there = self._old.wait_until_idle(self._options.wait)
        return f"nobody writes; still there: {'; '.join(map(str, there)) or 'no session'}"

    def _drain(self) -> str:
        self._drained = drain(self._config, self._route.forth, self._options.wait)
        return f'"{self._route.new}" has all up to {self._drained}'

    def _number(self) -> str:
        number, moved = move_past(self._config, self._route.forth, self._options.margin)
        return f"{counted(number, 'sequence')}, {moved} moved"

    def _see_way_back(self) -> str:
        assert self._route.back is not None
        return f'"{self._route.old}" has all up to {drain(self._config, self._route.back, self._options.wait)}'

    def _see_nobody_wrote(self) -> str:
        """Drain once more: whatever comes was written since."""
        before, now = self._drained, drain(self._config, self._route.forth, self._options.wait)
        self._drained = now
        assert before is not None
        if now.started != before.started:
            raise StreamerError("the daemon was restarted meanwhile, so this cannot be told", "run cutover again")
        written = now.transactions - before.transactions
        if is_fed(self._config, self._route):
            return f"{counted(written, 'transaction')} came; other nodes write to it too, so this is not looked into"
        if written:
            raise StreamerError(
                f'somebody has written {counted(written, "transaction")} to "{self._route.old}" meanwhile',
                "stop the application; --block-writes does not keep out who sets default_transaction_read_only = off",
            )
        self._old.require_no_prepared()
        return "nobody has"

    def _open(self) -> Step:
        """The last step. Should its answer get lost, the new node is shut again before the old one is opened."""
        new = Writers(self._config, self._route.new)
        name = self._route.new
        if new.setting != "on":
            return Step(f'open "{name}"', lambda: "it is open already")
        undo = Undo(f'"{name}" is read-only for clients', new.statement("on"), new.shut)
        return Step(
            f'open "{name}": {new.statement(None)}', lambda: f"takes writes of clients{'' if new.open() else ' already'}", undo
        )


def _asked_of_people(route: Route, options: Options) -> list[str]:
    return [] if options.block_writes else [f'Stop the application on "{route.old}" now, and keep it stopped until this is done.']


def _afterwards(route: Route, options: Options) -> Iterator[str]:
    yield f'Let the application connect to "{route.new}".'
    if options.block_writes:
        yield f'"{route.old}" stays read-only for clients.'
    if route.back is not None:
        blocking = " --block-writes" if options.block_writes else ""
        yield f"To go back without loss: streamer cutover {route.back.sync} --to {route.old}{blocking}"
