"""Rows on their way to the topic: all of them, once, also where an import was stopped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streams.bus.contract import BusError
from streams.bus.kafka.bus import KafkaBus
from streams.bus.memory import MemoryBus
from streams.contract.topics import BEHAVIOUR, topic_specs
from streams.imports import mapping as mappings
from streams.imports import send as sending
from streams.imports.send import Progress, send
from streams.imports.source import Place, UnreadableFile, find, opened

DATA = Path(os.environ.get("TIDEMILL_DATA", Path(__file__).parents[2] / "../shared/data"))
NOW_MS = 1_800_000_000_000
MAPPING = """
[fields]
user_id = "user"
item_id = "item"
kind = { value = "play" }
event_time_ms = { column = "at", unit = "ms" }
"""


@pytest.fixture
def mapping(tmp_path: Path) -> mappings.Mapping:
    (tmp_path / "m.toml").write_text(MAPPING)
    return mappings.load(str(tmp_path / "m.toml"))


def rows_file(path: Path, count: int) -> Place:
    lines = [f"u{n % 7},i{n},{1_700_000_000_000 + n}" for n in range(count)]
    path.write_text("user,item,at\n" + "\n".join(lines) + "\n")
    return Place(str(path))


def run(bus: Any, place: Place, mapping: mappings.Mapping, folder: Path, rows: int) -> int:
    progress = Progress.load(folder, place, mapping, bus.topic_id(BEHAVIOUR))
    with opened(place, mapping) as found:
        pieces = found.pieces(shift_ms=0, now_ms=NOW_MS, rows=rows)
        return send(bus, pieces, mapping, progress, lambda _: None).rows


def sent(bus: Any) -> list[dict[str, Any]]:
    ends = bus.ends(BEHAVIOUR).items()
    return [json.loads(r.value) for p, (a, b) in ends for r in bus.scan(BEHAVIOUR, p, a, b)]


def test_a_stopped_import_goes_on_where_it_stopped(
    mapping: mappings.Mapping, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = MemoryBus()
    bus.ensure_topics(topic_specs(2))
    place = rows_file(tmp_path / "a.csv", 10_000)
    saves = []
    real = Progress.save

    def stop_at_third(self: Progress) -> None:
        saves.append(self.sent)
        if len(saves) == 3:
            raise BusError("the broker went away")  # sent, and not remembered
        real(self)

    monkeypatch.setattr(sending.Progress, "save", stop_at_third)
    with pytest.raises(BusError):
        run(bus, place, mapping, tmp_path / "home", 2_048)
    run(bus, place, mapping, tmp_path / "home", 2_048)
    assert run(bus, place, mapping, tmp_path / "home", 2_048) == 0
    ids = [event["event_id"] for event in sent(bus)]
    assert len(set(ids)) == 10_000
    assert len(ids) == 10_000 + 2_048  # the piece that was not remembered; ingest marks it


def test_rows_reach_a_broker_as_history(
    mapping: mappings.Mapping, tmp_path: Path, embedded_broker: str
) -> None:
    bus = KafkaBus(embedded_broker)
    bus.ensure_topics(topic_specs(2))
    before = sum(b for _, b in bus.ends(BEHAVIOUR).values())
    place = rows_file(tmp_path / f"{uuid.uuid4().hex}.csv", 5_000)
    assert run(bus, place, mapping, tmp_path / "home", 2_048) == 5_000
    ends = bus.ends(BEHAVIOUR)
    assert sum(b for _, b in ends.values()) - before == 5_000
    partition, (_, last) = next((p, e) for p, e in ends.items() if e[1] > e[0])
    (record,) = list(bus.scan(BEHAVIOUR, partition, last - 1, last))
    assert record.header("tidemill-replay") == b"1"
    assert record.key == json.loads(record.value or b"")["user_id"].encode()


def test_another_mapping_or_topic_begins_anew(mapping: mappings.Mapping, tmp_path: Path) -> None:
    place = rows_file(tmp_path / "a.csv", 3)
    progress = Progress.load(tmp_path / "home", place, mapping, "topic-1")
    progress.sent, progress.shift_ms = 3, 60_000
    progress.save()
    again = Progress.load(tmp_path / "home", place, mapping, "topic-1")
    assert (again.sent, again.shift_ms) == (3, 60_000)
    assert Progress.load(tmp_path / "home", place, mapping, "topic-2").sent == 0
    other = mapping.model_copy(update={"about": "other"})
    assert Progress.load(tmp_path / "home", place, other, "topic-1").sent == 0


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("ml-100k/ml-100k.inter.gz", "movielens-recbole"),
        ("yoochoose-100k/yoochoose-clicks-100k_train_full.txt.gz", "yoochoose-prepared"),
        ("amazon-grocery/train.csv.gz", ""),
    ],
)
def test_public_files_arrive_whole(file: str, name: str, tmp_path: Path) -> None:
    """Counted independently: the file's lines but the header."""
    path = DATA / file
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    (tmp_path / "m.toml").write_text(
        '[fields]\nuser_id = "user_id"\nitem_id = "item_id"\nkind = { value = "order" }\n'
        'event_time_ms = { column = "time", unit = "s" }\n'
    )
    mapping = mappings.load(name or str(tmp_path / "m.toml"))
    bus = MemoryBus()
    bus.ensure_topics(topic_specs(2))
    run(bus, Place(str(path)), mapping, tmp_path / "home", 20_000)
    lines = int(subprocess.run(f"zcat {path} | wc -l", shell=True, capture_output=True).stdout) - 1
    events = sent(bus)
    assert len(events) == len({event["event_id"] for event in events}) == lines


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A Postgres on a loopback port, with a table `orders` of three rows."""
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), Path("/usr/local/bin")]
    binaries = next((f for f in folders if (f / "initdb").exists()), None)
    pytest.importorskip("adbc_driver_postgresql", reason="the extra `postgres` is not installed")
    if binaries is None:
        pytest.skip("Postgres is not installed (apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's folders are closed to others
    user: dict[str, Any] = {}
    if os.getuid() == 0:  # Postgres refuses to run as root
        shutil.chown(folder, "postgres")
        user = {"user": "postgres", "extra_groups": []}
    from deploy.services.process import free_port

    port, data = free_port(), folder / "data"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
    auth = ("-U", "postgres", "-A", "trust", "-E", "UTF8")
    subprocess.run([binaries / "initdb", "-D", data, *auth], check=True, **quiet, **user)
    options = ("-k", str(folder), "-h", "127.0.0.1", "-p", str(port), "-c", "fsync=off")
    server = subprocess.Popen([binaries / "postgres", "-D", data, *options], **quiet, **user)
    address = f"postgresql://postgres:hunter2@127.0.0.1:{port}/postgres"
    try:
        _fill(address)
        yield address
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _fill(address: str) -> None:
    import adbc_driver_postgresql.dbapi as driver

    deadline = time.monotonic() + 60
    while True:
        try:
            with driver.connect(address) as connection, connection.cursor() as cursor:
                cursor.execute(
                    "CREATE TABLE orders (customer text, sku text, at timestamptz, price float8)"
                )
                cursor.execute(
                    "INSERT INTO orders VALUES ('ann', 's1', '2024-01-01 00:00:00+00', 9.99), "
                    "('bob', 's2', '2024-01-02 00:00:00+00', 1), ('bob', 's''3', NULL, NULL)"
                )
                connection.commit()
            return
        except driver.Error:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_query_to_postgres_becomes_events(postgres: str, tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text(
        '[fields]\nuser_id = "customer"\nitem_id = "sku"\nkind = { value = "order" }\n'
        'event_time_ms = { column = "at" }\namount_cents = { column = "price", scale = 100 }\n'
    )
    mapping = mappings.load(str(tmp_path / "m.toml"))
    bus = MemoryBus()
    bus.ensure_topics(topic_specs(1))
    (place,) = find([postgres], "SELECT * FROM orders ORDER BY at")
    assert run(bus, place, mapping, tmp_path / "home", 100) == 3
    first, second, third = sent(bus)
    assert (first["user_id"], first["event_time_ms"]) == ("ann", 1_704_067_200_000)
    assert first["amount_cents"] == 999
    assert second["event_time_ms"] == 1_704_153_600_000
    assert (third["item_id"], "event_time_ms" in third) == ("s'3", False)
    (wrong,) = find([postgres], "SELECT * FROM nothing")
    with pytest.raises(UnreadableFile) as refused:
        run(bus, wrong, mapping, tmp_path / "home", 100)
    assert "nothing" in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_files_of_one_name_and_a_replaced_file_lose_no_row(
    mapping: mappings.Mapping, tmp_path: Path
) -> None:
    bus = MemoryBus()
    bus.ensure_topics(topic_specs(2))
    for folder, user in (("north", "a"), ("south", "b")):  # of one size, too
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "orders.csv"
        path.write_text(f"user,item,at,#row\n{user},i1,1700000000000,none\n")
        assert run(bus, Place(str(path)), mapping, tmp_path / "p", 10) == 1
        assert run(bus, Place(str(path)), mapping, tmp_path / "p", 10) == 0
    path.write_text("user,item,at,#row\nc,i1,1700000000000,none\n")
    os.utime(path, ns=(1, 1))  # another time than before, however coarse the clock of files is
    assert run(bus, Place(str(path)), mapping, tmp_path / "p", 10) == 1
    assert len({event["event_id"] for event in sent(bus)}) == 3


def test_a_file_that_grew_keeps_the_ids_of_its_old_rows(
    mapping: mappings.Mapping, tmp_path: Path
) -> None:
    bus = MemoryBus()
    bus.ensure_topics(topic_specs(2))
    for count in (3, 5):
        run(bus, rows_file(tmp_path / "a.csv", count), mapping, tmp_path / "p", 10)
    events = sent(bus)
    assert len(events) == 8
    assert len({event["event_id"] for event in events}) == 5  # admission drops those sent again
