import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest

from operations_rig import in_loop
from sterna.model.edge import dump_json
from sterna.model.operation import LogLine, Operation, OperationState
from sterna.operations import tables
from sterna.operations.journal import Journal
from sterna.operations.schema import MIGRATIONS
from sterna.operations.tables import Limits


def operation(number: int, state: str = "succeeded", **more: object) -> Operation:
    return Operation(
        id=f"op-{number}",
        kind="move",
        vm=f"vm{number % 3}",
        vm_id=f"id-{number % 3}",
        state=OperationState(state),
        created=f"2026-11-22T00:00:{number:09d}Z",
        **more,
    )


def save(journal: Journal, one: Operation, event: int = 1, durable: bool = False) -> None:
    journal.save(one, event, dump_json(one).decode(), durable=durable)


def add_line(journal: Journal, one: str, event: int, number: int) -> None:
    line = LogLine(number=number, time="now", level="info", text=f"line {number}")
    journal.add_line(one, event, number, dump_json(line).decode())


@in_loop
async def test_what_was_saved_is_read_newest_first_after_a_restart(tmp_path):
    journal = Journal(tmp_path / "journal.db")
    for number in range(6):
        save(journal, operation(number, "running" if number == 4 else "failed"))
    save(journal, operation(4, "running", phase="memory"), 7)
    await journal.close()
    journal = Journal(tmp_path / "journal.db")
    found = await journal.newest()
    assert [one.id for one in found] == ["op-5", "op-4", "op-3", "op-2", "op-1", "op-0"]
    assert [one.id for one in await journal.newest(vm="vm1")] == ["op-4", "op-1"]
    assert [one.id for one in await journal.newest(vm="id-1", limit=1)] == ["op-4"]
    assert [one.id for one in await journal.newest(state="running")] == ["op-4"]
    assert await journal.newest(kind="stop") == []
    (left,) = await journal.unfinished()
    assert left.operation.phase == "memory"
    assert left.event == 7
    assert journal.damaged == []
    await journal.close()


@in_loop
async def test_samples_are_thinned_evenly_and_keep_the_first_and_last(tmp_path):
    journal = Journal(tmp_path / "journal.db", Limits(samples=100))
    save(journal, operation(1, "running"))
    await journal.flush()
    connection = journal._connection
    for number in range(1, 102):
        journal.add_sample("op-1", number, f'{{"n":{number}}}')
    await journal.flush()
    # As if one came each second.
    connection.execute("UPDATE sample SET at = event / 86400.0")
    journal.thin("op-1")
    kept = [sample["n"] for sample in await journal.samples("op-1")]
    assert kept[0] == 1
    assert kept[-1] == 101
    assert 45 <= len(kept) <= 51
    assert max(b - a for a, b in pairwise(kept)) <= 3
    await journal.close()


@in_loop
async def test_samples_stay_bounded_and_even_over_many_thinnings(tmp_path):
    journal = Journal(tmp_path / "journal.db", Limits(samples=60))
    save(journal, operation(1, "running"))
    await journal.flush()
    for number in range(1, 1001):
        journal.add_sample("op-1", number, f'{{"n":{number}}}')
        if number % 30 == 0 and number > 30:
            await journal.flush()
            journal._connection.execute("UPDATE sample SET at = event / 86400.0")
            journal.thin("op-1")
    kept = [sample["n"] for sample in await journal.samples("op-1")]
    assert kept[0] == 1
    assert kept[-1] == 1000
    assert len(kept) <= 61
    assert max(b - a for a, b in pairwise(kept)) <= 100
    await journal.close()


@in_loop
async def test_a_long_log_keeps_its_beginning_and_its_newest_lines(tmp_path):
    journal = Journal(tmp_path / "journal.db", Limits(lines=300))
    save(journal, operation(1, "running"))
    for number in range(1, 1001):
        add_line(journal, "op-1", number, number)
    numbers = [line.number for line in await journal.lines("op-1", limit=5000)]
    assert numbers == [*range(1, 101), *range(801, 1001)]
    assert [line.number for line in await journal.lines("op-1", after=998)] == [999, 1000]
    await journal.close()


@in_loop
async def test_old_operations_go_with_all_they_had_but_never_an_unfinished_one(tmp_path):
    journal = Journal(tmp_path / "journal.db", Limits(operations=10))
    save(journal, operation(0, "unknown"))
    for number in range(1, 50):
        save(journal, operation(number))
        add_line(journal, f"op-{number}", 1, 1)
        journal.add_sample(f"op-{number}", 2, "{}")
    found = [one.id for one in await journal.newest()]
    assert found == [*(f"op-{number}" for number in range(49, 39, -1)), "op-0"]
    counts = [
        journal._connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]
        for table in ("log", "sample")
    ]
    assert counts == [10, 10]
    await journal.close()


def cost(journal: Journal, work: object) -> int:
    """Steps of SQLite's machine: a figure without a clock."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    journal._connection.set_progress_handler(count, 1)
    work(journal._connection)
    journal._connection.set_progress_handler(None, 1)
    return steps


@in_loop
async def test_the_cost_of_reads_and_writes_does_not_grow_with_history(tmp_path):
    journal = Journal(tmp_path / "journal.db", Limits(operations=2000))

    def fill(first: int, last: int) -> None:
        for number in range(first, last):
            save(journal, operation(number))
            for event in range(1, 6):
                add_line(journal, f"op-{number}", event, event)
                journal.add_sample(f"op-{number}", event + 10, "{}")

    body = dump_json(operation(3)).decode()
    works = {
        "save": lambda c: tables.save(c, operation(3), (9, body), journal.limits),
        "add": lambda c: tables.save(c, operation(10**6), (9, body), journal.limits),
        "line": lambda c: tables.add_line(c, "op-3", (99, 99), "{}", journal.limits),
        "sample": lambda c: tables.add_sample(c, "op-3", 98, "{}"),
        "thin": lambda c: tables.thin(c, "op-3", 500),
        "get": lambda c: tables.get(c, "op-4"),
        "list": lambda c: tables.list_operations(c, "", "", "", 10),
        "unfinished": tables.unfinished,
        "events": lambda c: tables.events(c, "op-4", 0, None, 500),
        "lines": lambda c: tables.lines(c, "op-4", 0, 500),
    }
    figures = []
    for first, last in ((0, 20), (20, 700)):
        fill(first, last)
        await journal.flush()
        connection = journal._connection
        connection.execute("BEGIN")
        figures.append({name: cost(journal, work) for name, work in works.items()})
        connection.execute("ROLLBACK")
    few, many = figures
    for name, figure in few.items():
        assert many[name] <= 1.2 * figure + 60, f"{name}: {figure} steps, then {many[name]}"
    await journal.close()


@in_loop
async def test_a_journal_of_the_version_before_is_read_and_goes_on(tmp_path):
    path = tmp_path / "journal.db"
    body = dump_json(operation(1)).decode().replace('"parent":"",', "")
    assert "parent" not in body
    with sqlite3.connect(path) as connection:
        connection.executescript(MIGRATIONS[0])
        connection.execute("PRAGMA user_version = 1")
        connection.execute(
            "INSERT INTO operation (id, kind, vm, vm_id, state, is_final, event, body)"
            " VALUES ('op-1', 'move', 'vm1', 'id-1', 'succeeded', 1, 1, ?)",
            (body,),
        )
    connection.close()
    journal = Journal(path)
    assert journal.damaged == []
    save(journal, operation(2, parent="op-1"))
    assert [one.id for one in await journal.newest()] == ["op-2", "op-1"]
    assert [one.id for one in await journal.parts("op-1")] == ["op-2"]
    assert await journal.parts("") == []
    await journal.close()


def garbage(path: Path) -> None:
    path.write_bytes(b"this was never a database, whatever its name says " * 100)


def torn(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:100] + os.urandom(2000) + data[2100:])


def newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE operation (something TEXT)")
        connection.execute("PRAGMA user_version = 1")
    connection.close()


@pytest.mark.parametrize("damage", [garbage, torn, newer, foreign])
@in_loop
async def test_a_damaged_file_is_set_aside_and_reported_and_a_new_one_begun(tmp_path, damage):
    path = tmp_path / "journal.db"
    journal = Journal(path)
    save(journal, operation(1))
    await journal.close()
    damage(path)
    was = path.read_bytes()
    journal = Journal(path)
    (report,) = journal.damaged
    kept = Path(report.facts["path"])
    assert kept.parent == tmp_path
    assert kept.name.startswith("journal.db.damaged-")
    assert kept.read_bytes() == was  # noqa: ASYNC240
    assert report.code == "journal.corrupt"
    save(journal, operation(2))
    assert [one.id for one in await journal.newest()] == ["op-2"]
    await journal.close()
    journal = Journal(path)
    assert [one.facts["path"] for one in journal.damaged] == [str(kept)]
    assert [one.id for one in await journal.newest()] == ["op-2"]
    await journal.close()
    kept.unlink()  # noqa: ASYNC240
    journal = Journal(path)
    assert journal.damaged == []
    await journal.close()


@in_loop
async def test_a_file_that_goes_bad_in_use_is_set_aside_and_live_states_are_kept(tmp_path):
    journal = Journal(tmp_path / "journal.db")
    for number in range(200):
        save(journal, operation(number))
    await journal.flush()
    await asyncio.to_thread(journal._connection.execute, "PRAGMA wal_checkpoint(TRUNCATE)")
    size = journal.path.stat().st_size
    with journal.path.open("r+b") as file:
        for page in range(4096, size, 4096):
            file.seek(page)
            file.write(b"\xff" * 4096)
    journal._connection.execute("PRAGMA shrink_memory")
    save(journal, operation(7, "running"))
    save(journal, operation(1000, "running"), durable=True)
    found = {one.id for one in await journal.newest()}
    assert found == {"op-7", "op-1000"}
    assert len(journal.damaged) == 1
    await journal.close()


@in_loop
async def test_a_full_disk_costs_history_and_the_newest_states_are_written_when_there_is_room(
    tmp_path,
):
    journal = Journal(tmp_path / "journal.db")
    save(journal, operation(1, "running"))
    await journal.flush()
    (pages,) = journal._connection.execute("PRAGMA page_count").fetchone()
    journal._connection.execute(f"PRAGMA max_page_count = {pages}")
    for number in range(2, 100):
        save(journal, operation(number, result={"words": "x" * 500}))
    save(journal, operation(1, "succeeded", result={"words": "x" * 9000}), 5)
    add_line(journal, "op-1", 6, 1)
    await journal.flush()
    assert "full" in journal.problem
    assert (await journal.get("op-1")).state == "running"
    journal._connection.execute("PRAGMA max_page_count = 100000")
    await journal.flush()
    assert (await journal.get("op-1")).state == "succeeded"
    assert len(await journal.newest()) == 99
    assert journal.problem == ""
    await journal.close()


@in_loop
async def test_a_folder_that_cannot_be_written_costs_the_history_not_the_daemon(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    journal = Journal(tmp_path / "file" / "journal.db")
    assert "cannot be used" in journal.problem
    save(journal, operation(1))
    assert [one.id for one in await journal.newest()] == ["op-1"]
    assert journal.problem
    await journal.close()


@in_loop
async def test_a_row_that_cannot_be_read_hides_no_other(tmp_path, caplog):
    journal = Journal(tmp_path / "journal.db")
    for number in range(3):
        save(journal, operation(number, "running"))
    await journal.flush()
    journal._connection.execute("UPDATE operation SET body = '{}' WHERE id = 'op-1'")
    assert [one.operation.id for one in await journal.unfinished()] == ["op-0", "op-2"]
    assert [one.id for one in await journal.newest()] == ["op-2", "op-0"]
    assert await journal.get("op-1") is None
    assert "cannot be read" in caplog.text
    await journal.close()


@in_loop
async def test_a_line_of_an_operation_that_is_gone_harms_nobody(tmp_path):
    journal = Journal(tmp_path / "journal.db")
    add_line(journal, "nobody", 1, 1)
    save(journal, operation(1))
    assert await journal.get("op-1")
    assert journal.problem == ""
    await journal.close()


def test_what_was_flushed_survives_kill_9(tmp_path):
    writer = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from sterna.model.edge import dump_json
        from sterna.model.operation import Operation, OperationState
        from sterna.operations.journal import Journal

        async def main():
            journal = Journal(Path(sys.argv[1]))
            for number in range(10**6):
                one = Operation(id=str(number), kind="move", vm="v", vm_id="v",
                                state=OperationState.RUNNING)
                journal.save(one, 1, dump_json(one).decode(), durable=number % 3 == 0)
                await journal.flush()
                print(number, flush=True)

        asyncio.run(main())
        """
    )
    path = tmp_path / "journal.db"
    with subprocess.Popen(
        [sys.executable, "-c", writer, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line.strip() == "40":
                break
        process.send_signal(signal.SIGKILL)
        told = [40, *map(int, process.stdout.read().split())][-1]

    async def look() -> None:
        journal = Journal(path)
        assert journal.damaged == []
        assert len(await journal.unfinished()) >= told + 1
        await journal.close()

    asyncio.run(look())
