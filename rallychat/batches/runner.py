"""Runs batches in a server: on idle capacity, for those whose they are, wherever the last process left them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from rallychat.batches.checking import Fault, check
from rallychat.batches.journal import Journal
from rallychat.batches.lines import Line, read_lines
from rallychat.batches.results import Totals, sort
from rallychat.batches.room import REST, Room
from rallychat.batches.turns import Turns
from rallychat.batches.work import AHEAD, Answer, Outcome, Progress, work
from rallychat.chat import ChatService
from rallychat.errors import Conflict, NotFound, RallyChatError, Stopping
from rallychat.identity import acting_as
from rallychat.shelf import model_to_use
from rallychat.store import BatchStore, StoredBatch
from rallychat.store.batches import Status
from rallychat.store.files import row_of

log = logging.getLogger(__name__)

LOOK: Final = 1.0
"""Seconds between two looks at what there is to do."""
TIDY: Final = 600.0
"""Seconds between two sweeps of expired files."""
ABROAD: Final = timedelta(minutes=10)
"""After that a batch that should have ended, and whose input another machine has, is ended without it."""
EACH: Final = 4
"""Batches of one user that are worked on at the same time."""
BACK_OFF: Final = (1.0, 5.0, 30.0, 60.0, 60.0)
"""Seconds before each new try of a batch whose model cannot be had; after the last the batch fails."""


class BatchRunner:
    """The batches of one server. Use `running` as long as the server runs.

    Args:
        service: answers the lines.
        lines: answers one line, given the model of its batch.
        rest: see `room.REST`.
    """

    def __init__(
        self, service: ChatService, lines: Callable[[str | None], Answer], *, rest: float = REST
    ) -> None:
        self._service = service
        self._lines = lines
        self._room = Room(service, rest=rest)
        self._turns = Turns(self._room.width)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._working: dict[str, asyncio.Task[Progress]] = {}
        self._progress: dict[str, Progress] = {}
        self._told: dict[str, Progress] = {}
        self._wake = asyncio.Event()
        self._swept = -TIDY

    @property
    def _folder(self) -> Path:
        """Where the answers of unfinished batches are."""
        return self._service.settings.data_dir / "batches"

    @property
    def _store(self) -> BatchStore:
        return self._service.store.batches

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Works until the block ends; what is not done then is gone on with by the next process."""
        looking = asyncio.create_task(self._look_on(), name="look for batches")
        try:
            yield
        finally:
            looking.cancel()
            tasks = [looking, *self._tasks.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self) -> None:
        """There is something new to do."""
        self._wake.set()

    # --- what there is to do ------------------------------------------------------------------------------

    async def _look_on(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._look()
            except RallyChatError as exc:
                log.warning("batches cannot be looked for: %s", exc)
            except Exception:
                log.exception("looking for batches failed")
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._wake.wait()

    async def _look(self) -> None:
        tidy = time.monotonic() - self._swept > TIDY
        left = await asyncio.to_thread(lambda: [*self._folder.glob("batch_*")]) if tidy else []
        there = await self._store.unfinished()
        if tidy:
            self._swept = time.monotonic()
            await self._service.store.files.sweep()
            await asyncio.to_thread(_sweep, left, {batch.id for batch in there} | self._tasks.keys())
        self._service.metrics.batch_lines_wait(
            sum(max(0, batch.total - batch.completed - batch.failed) for batch in there)
        )
        for batch in there:
            if batch.status == "cancelling" and (working := self._working.get(batch.id)) is not None:
                working.cancel()
        for name in self._working.keys() - {batch.id for batch in there}:  # erased with its user
            self._working[name].cancel()
        await self._tell()
        if self._service.runs.stopping:
            return
        others = [batch for batch in there if batch.id not in self._tasks]
        others = await asyncio.to_thread(self._ours, others)
        for batch in _few_of_each(await self._store.claimable(others), self._tasks, there):
            if (mine := await self._store.claim(batch)) is not None:
                task = asyncio.create_task(self._one(mine), name=batch.id)
                self._tasks[batch.id] = task
                task.add_done_callback(lambda task: self._ended(task.get_name()))

    def _ours(self, found: Iterable[StoredBatch]) -> list[StoredBatch]:
        """Those whose files are on this machine, and those that another one with their files should have ended."""
        abroad = self._service.store.files.is_abroad
        return [
            batch
            for batch in found
            if not abroad(batch.input_file_id) or self._output(batch).exists() or _is_overdue(batch)
        ]

    async def _tell(self) -> None:
        for name, at in list(self._progress.items()):
            if self._told.get(name) != at:
                await self._store.count(name, completed=at.done - at.failed, failed=at.failed)
                self._told[name] = at

    def _ended(self, name: str) -> None:
        for known in (self._tasks, self._progress, self._told):
            known.pop(name, None)
        self._wake.set()

    # --- one batch ----------------------------------------------------------------------------------------

    async def _one(self, batch: StoredBatch) -> None:
        with acting_as(batch.user_id):
            try:
                if not await asyncio.to_thread(self._input(batch).exists):
                    batch = await self._lost(batch)
                if batch.status == "validating":
                    batch = await self._validated(batch)
                if batch.open:
                    await self._worked(batch)
            except Stopping:
                with suppress(RallyChatError):
                    await self._store.release(batch.id)
            except Exception as exc:
                if isinstance(exc, NotFound) and await self._is_gone(batch):
                    self._forget(batch)
                    return
                level = logging.WARNING if isinstance(exc, RallyChatError | OSError) else logging.ERROR
                log.log(level, "batch %s: %s", batch.id, type(exc).__name__, exc_info=level > logging.WARNING)
                await asyncio.sleep(BACK_OFF[1])  # the disk is full, say: another try, by whoever is there
                with suppress(RallyChatError):
                    await self._store.release(batch.id)

    async def _is_gone(self, batch: StoredBatch) -> bool:
        try:
            await self._store.get(batch.id)
        except NotFound:
            return True
        except RallyChatError:
            pass
        return False

    async def _lost(self, batch: StoredBatch) -> StoredBatch:
        """Ends a batch whose input is gone, or on a machine that does not come."""
        is_late = batch.expires_at <= datetime.now(UTC)
        status: Status = "cancelled" if batch.status == "cancelling" else "expired" if is_late else "failed"
        fault = Fault("file_not_found", "The input file is gone.")
        batch = await self._store.end(batch.id, status, (), errors=[fault.as_dict()])
        self._forget(batch)
        return batch

    def _forget(self, batch: StoredBatch) -> None:
        for left in self._folder.glob(f"{batch.id}.jsonl*"):
            left.unlink(missing_ok=True)

    async def _validated(self, batch: StoredBatch) -> StoredBatch:
        settings = self._service.settings

        def read() -> tuple[int, str | None, Sequence[Fault]]:
            with self._input(batch).open("rb") as stream:
                found = check(
                    stream,
                    endpoint=batch.endpoint,
                    most=settings.max_batch_lines,
                    longest=settings.max_body_bytes,
                )
            return found.lines, found.model, found.faults

        lines, model, faults = await asyncio.to_thread(read)
        if not faults:
            try:
                model = model_to_use(self._service, model).id
            except RallyChatError as exc:
                faults = [Fault("model_not_found", str(exc), param="body.model")]
        if faults:
            told = [fault.as_dict() for fault in faults]
            return await self._store.end(batch.id, "failed", (), errors=told)
        return await self._store.advance(batch.id, "in_progress", total=lines, model=model)

    async def _worked(self, batch: StoredBatch) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        failures: list[RallyChatError] = []
        while True:
            with self._journal(batch) as journal:
                before = journal.written + len(journal.held)
                stuck: RallyChatError | None = None
                expired = False
                try:
                    expired = await self._answered(batch, journal)
                except Stopping:
                    raise
                except RallyChatError as exc:
                    if isinstance(exc, NotFound) and await self._is_gone(batch):
                        raise
                    stuck = exc
                progressed = journal.written + len(journal.held) > before
                failures = ([] if progressed else failures) + ([stuck] if stuck else [])
                if stuck is None or len(failures) > len(BACK_OFF):
                    await self._finished(batch, journal, expired=expired, stuck=stuck)
                    break
            await asyncio.sleep(BACK_OFF[len(failures) - 1])
        self._forget(batch)

    def _journal(self, batch: StoredBatch) -> Journal:
        output, facts = self._output(batch), {"batch": batch.id}
        try:
            return Journal(output, facts)
        except (
            Conflict
        ) as exc:  # a copy made amid the work; where another process has it, this is raised again
            journal = Journal(output, facts, overwrite=True)
            log.warning("batch %s is begun anew: %s", batch.id, exc)
            return journal

    async def _answered(self, batch: StoredBatch, journal: Journal) -> bool:
        """Answers what is not answered, unless it is called off; whether its time was over before that."""
        batch = await self._store.get(batch.id)
        if batch.status in ("cancelling", "finalizing"):
            return False
        left = (batch.expires_at - datetime.now(UTC)).total_seconds()
        working = asyncio.create_task(self._lines_of(batch, journal))
        self._working[batch.id] = working
        try:
            done, _ = await asyncio.wait({working}, timeout=max(0.0, left))
            if not done:
                working.cancel()
                await asyncio.wait({working})
            if working.cancelled():
                return (await self._store.get(batch.id)).status != "cancelling"
            working.result()
            return False
        finally:
            del self._working[batch.id]
            if not working.done():
                working.cancel()
                await asyncio.wait({working})

    async def _lines_of(self, batch: StoredBatch, journal: Journal) -> Progress:
        model = self._service.resolve(batch.model).id
        answer = self._lines(model)
        width = self._room.width(model)

        async def fairly(line: Line) -> Outcome:
            async with self._turns.turn(model, batch.user_id, batch.id):
                return await self._room.patiently(answer, line, model)

        def tell(at: Progress) -> None:
            before = self._progress.get(batch.id)
            self._progress[batch.id] = at
            self._service.metrics.batch_line(ok=at.failed == (before.failed if before else journal.failed))

        self._progress[batch.id] = Progress(journal.written + len(journal.held), journal.failed)
        with self._input(batch).open("rb") as stream:
            lines = read_lines(stream, longest=self._service.settings.max_body_bytes)
            return await work(lines, fairly, journal, width=width, ahead=AHEAD * width, tell=tell)

    async def _finished(
        self, batch: StoredBatch, journal: Journal, *, expired: bool, stuck: RallyChatError | None
    ) -> None:
        """Sorts the outcomes into files, and ends the batch."""
        batch = await self._store.get(batch.id)
        status: Status = "completed"
        if stuck is not None:
            status = "failed"
        elif batch.status == "cancelling":
            status = "cancelled"
        elif expired:
            status = "expired"
        else:
            await self._store.advance(batch.id, "finalizing")
        files = self._service.store.files
        (answers_id, answers), (errors_id, errors) = files.begin(), files.begin()
        told = False
        try:
            totals = await asyncio.to_thread(
                sort,
                self._input(batch),
                journal.output,
                journal.written,
                dict(journal.held),
                answers,
                errors,
                expired=status == "expired",
                longest=self._service.settings.max_body_bytes,
            )
            made = [
                self._row(batch, name, await asyncio.to_thread(files.land, name, stream), kind)
                for name, stream, kind, count in (
                    (answers_id, answers, "output", totals.completed),
                    (errors_id, errors, "error", totals.failed),
                )
                if count
            ]
            told = True  # what is raised from now on may come after the rows: the sweep looks at them
            await self._store.end(
                batch.id,
                status,
                made,
                output_file_id=answers_id if totals.completed else None,
                error_file_id=errors_id if totals.failed else None,
                errors=[{"code": stuck.code, "message": str(stuck), "line": None, "param": None}]
                if stuck
                else None,
                **_figures(totals),
            )
        except BaseException:
            if not told:
                files.forget(answers_id)
                files.forget(errors_id)
            raise
        finally:
            answers.close()
            errors.close()
        for name, count in ((answers_id, totals.completed), (errors_id, totals.failed)):
            if not count:
                files.forget(name)

    def _row(self, batch: StoredBatch, name: str, size: int, kind: str) -> dict[str, Any]:
        lives = timedelta(seconds=batch.output_expires_after) if batch.output_expires_after else None
        filename = f"{batch.id}_{kind}.jsonl"
        return row_of(name, size, purpose="batch_output", filename=filename, lives=lives)

    def _output(self, batch: StoredBatch) -> Path:
        return self._folder / f"{batch.id}.jsonl"

    def _input(self, batch: StoredBatch) -> Path:
        return self._service.store.files.path(batch.input_file_id)


def _few_of_each(
    claimable: Sequence[StoredBatch], running: dict[str, Any], there: Sequence[StoredBatch]
) -> list[StoredBatch]:
    """The oldest of each user, as many as may run beside those of theirs that do."""
    count: dict[str, int] = {}
    for batch in there:
        count[batch.user_id] = count.get(batch.user_id, 0) + (batch.id in running)
    chosen = []
    for batch in claimable:
        if count[batch.user_id] < EACH or batch.status == "cancelling":
            count[batch.user_id] += 1
            chosen.append(batch)
    return chosen


def _is_overdue(batch: StoredBatch) -> bool:
    due = batch.cancelling_at if batch.status == "cancelling" else None
    return min(due or batch.expires_at, batch.expires_at) + ABROAD < datetime.now(UTC)


def _sweep(left: Iterable[Path], known: Collection[str]) -> None:
    """Deletes what belongs to no unfinished batch: its user was erased while nobody worked on it."""
    for path in left:
        if path.name.partition(".")[0] not in known:
            path.unlink(missing_ok=True)


def _figures(totals: Totals) -> dict[str, Any]:
    return {"completed": totals.completed, "failed": totals.failed, "usage": totals.usage}
