"""The tables of a sync compared without end, at a bounded rate: one round over all of them after the other.

It is the comparison of the command, with small ranges and a pause after each, over connections of its own. Whatever fails is told,
and tried again in the next round. `run` is the body of a thread of the daemon; the others may be called from any thread.

The trap: an edge that is paused or copies does not get on, so nothing can be said of its rows; it is passed over, and its proof
grows old meanwhile. So what is shown is how old the oldest part of the proof is, not when the last round ended.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Final

import structlog

from streamer.config import Config
from streamer.errors import StreamerError
from streamer.model import EdgeName
from streamer.report import Problem, ProofReport
from streamer.verify.proofs import Proof, Told
from streamer.verify.tables import Manner, Verdict, Verified, Wanted, compare_edge, edges_of

ROUND_SECONDS: Final = 60.0
"""The shortest time between the beginnings of two rounds: small tables need not be read all the time."""
OBSTACLE_SECONDS: Final = 5.0
"""The same where an edge was passed over, as while it starts."""
RANGE_SECONDS: Final = 5.0
"""A range has the rows of so long at the rate."""
RANGE_ROWS: Final = (1_000, 500_000)
"""The rows that it has at least and at most."""
STOP_SECONDS: Final = 2.0
"""How long to wait for a thread; what it reads is broken off, but a server may be slow to hear of that."""


class BrokenOff(Exception):
    """The comparison was told to end, or its edge does not stream any more."""


class Prover:
    """Compares the tables of a sync in rounds, `rate` rows a second. `hurry` has its streams make progress durable, and `obstacle`
    tells why nothing can be said of an edge now."""

    def __init__(
        self,
        config: Config,
        sync: str,
        rate: int,
        hurry: Callable[[str], object],
        obstacle: Callable[[EdgeName], str],
    ) -> None:
        self._config = config
        self._what = Wanted(sync)
        self._rate = rate
        self._hurry = hurry
        self._obstacle = obstacle
        self._stop = threading.Event()
        self._proofs = [Proof(edge, continuous=True) for edge in edges_of(config, self._what)]
        self._log = structlog.get_logger().bind(sync=sync)

    def run(self) -> None:
        """Compare until told to stop."""
        while not self._stop.is_set():
            began = time.monotonic()
            self.round()
            shortest = OBSTACLE_SECONDS if any(proof.obstacle for proof in self._proofs) else ROUND_SECONDS
            self._stop.wait(max(0.0, began + shortest - time.monotonic()))

    def stop(self) -> None:
        """Let `run` end; what is being read is broken off."""
        self._stop.set()

    @property
    def proofs(self) -> Mapping[EdgeName, Proof]:
        """What is proven of each edge."""
        return {proof.edge: proof for proof in self._proofs}

    def round(self) -> None:
        """Compare all tables of all edges once. What fails is told, and not raised."""
        for proof in self._proofs:
            try:
                self._compare(proof)
            except BrokenOff as reason:
                proof.obstacle = str(reason)
            except StreamerError as error:
                self._failed(proof, Problem.of(error, datetime.now(UTC)))
            except Exception as error:  # a bug here must end neither the thread in silence, nor anything else
                log = self._log.bind(source=proof.edge.source, target=proof.edge.target)
                log.exception("proof_broken")
                self._failed(proof, Problem(f"unexpected {type(error).__name__}: {error}", "see the log", datetime.now(UTC)))

    def _compare(self, proof: Proof) -> None:
        self._beat(proof, 0)
        low, high = RANGE_ROWS
        rows = min(max(int(self._rate * RANGE_SECONDS), low), high)
        manner = Manner(self._hurry, partial(self._beat, proof), rows)
        failures, seen = proof.failures, set()
        for one in compare_edge(self._config, proof.edge, self._what, manner):
            seen.add(one.table)
            self._note(proof, one)
        proof.gone_through(seen)
        proof.rounds += 1
        if proof.failures == failures:
            proof.problem = None

    def _beat(self, proof: Proof, rows: int) -> None:
        """Keep the rate. Raises BrokenOff."""
        proof.compared += rows
        self._stop.wait(rows / self._rate)
        if self._stop.is_set():
            raise BrokenOff
        if obstacle := self._obstacle(proof.edge):
            raise BrokenOff(obstacle)
        proof.obstacle = ""

    def _note(self, proof: Proof, one: Verified) -> None:
        before = proof.note(one)
        if one.verdict in (Verdict.BEHIND, Verdict.FAILED):
            self._failed(proof, Problem(f'table "{one.table}": {one.problem}', one.remedy, datetime.now(UTC)))
        else:
            self._tell_change(proof.edge, one, 0 if before is None else before.left)

    def _failed(self, proof: Proof, problem: Problem) -> None:
        if proof.problem is None or proof.problem.message != problem.message:
            log = self._log.bind(source=proof.edge.source, target=proof.edge.target)
            log.warning("proof_failed", error=problem.message, remedy=problem.hint, again="in the next round")
        proof.failures += 1
        proof.problem = problem

    def _tell_change(self, edge: EdgeName, one: Verified, before: int) -> None:
        """Log that rows differ, or do no longer, when that is news."""
        log = self._log.bind(source=edge.source, target=edge.target)
        if one.different and one.different != before:
            remedy = f"see: streamer verify {edge.sync} --target {edge.target} --table {one.table}"
            log.error("rows_differ", table=one.table, rows=one.rows, different=one.different, keys=one.keys, remedy=remedy)
        elif before and not one.different:
            log.info("rows_equal_again", table=one.table, rows=one.rows)


class Provers:
    """The provers of all syncs of a config that want one, each in a thread of its own; and what commands have told of others."""

    def __init__(self, hurry: Callable[[str], object], obstacle: Callable[[EdgeName], str]) -> None:
        self._hurry = hurry
        self._obstacle = obstacle
        self._running: dict[str, tuple[Prover, threading.Thread, object]] = {}
        self._settings: Mapping[str, object] = {}
        self._told: dict[EdgeName, Proof] = {}

    def take(self, config: Config, settings: Mapping[str, object]) -> None:
        """Prove the syncs of the config that `settings` names, as far as they want it; what was proven of one whose settings are as
        before stays."""
        wanted = {name: of for name, of in settings.items() if config.syncs[name].verify == "continuous"}
        kept = {name: one for name, one in self._running.items() if wanted.get(name) == one[2]}
        self._end([one for name, one in self._running.items() if name not in kept])
        self._running = kept | {name: self._started(config, name, of) for name, of in wanted.items() if name not in kept}
        same = {name for name in settings.keys() - wanted.keys() if settings[name] == self._settings.get(name)}
        self._told = {edge: proof for edge, proof in self._told.items() if edge.sync in same}
        self._settings = settings

    def hear(self, told: Told) -> None:
        """Take over what a command has found of an edge."""
        proof = self._proofs().get(told.edge) or self._told.setdefault(told.edge, Proof(told.edge, continuous=False))
        for one in told.tables:
            proof.note(one)
        if told.whole:
            proof.gone_through(one.table for one in told.tables)

    def _proofs(self) -> dict[EdgeName, Proof]:
        return self._told | {edge: proof for prover, _, _ in self._running.values() for edge, proof in prover.proofs.items()}

    def _started(self, config: Config, sync: str, settings: object) -> tuple[Prover, threading.Thread, object]:
        prover = Prover(config, sync, config.syncs[sync].verify_rate, self._hurry, self._obstacle)
        thread = threading.Thread(target=prover.run, name=f"verify {sync}", daemon=True)
        thread.start()
        return prover, thread, settings

    def reports(self) -> dict[EdgeName, ProofReport]:
        """Return what is proven, by edge."""
        return {edge: proof.report() for edge, proof in self._proofs().items()}

    def stop(self) -> None:
        """End all of them."""
        self._end(list(self._running.values()))

    def _end(self, provers: list[tuple[Prover, threading.Thread, object]]) -> None:
        for prover, _, _ in provers:
            prover.stop()
        for _, thread, _ in provers:
            thread.join(STOP_SECONDS)
