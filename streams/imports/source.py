"""Files and tables as rows: CSV, Parquet, JSON lines (gzip too) and Postgres, read in pieces.

Knows DuckDB's readers and ADBC. Memory is bounded by the size of a piece. Does not know fields.
"""

from __future__ import annotations

import glob
import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from streams.imports.mapping import BadMapping, Mapping
from streams.imports.sql import JSON_COLUMN, RowSql, literal

PIECE_ROWS = 20_000
_HEADER_CHARACTERS = 1 << 20
MAX_DOCUMENT_BYTES = 16 * 2**20
_MEMORY = "512MB"
_FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".dat": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
}
DATABASES = ("postgresql://", "postgres://")


class UnreadableFile(RuntimeError):
    """The file is missing, torn or of another format; the message names it."""


@dataclass(frozen=True)
class Place:
    """One file, or one query to a database. `key`: stays the same over resumed imports."""

    path: str
    query: str = ""

    @property
    def key(self) -> str:
        return self.query or Path(self.path).name

    @property
    def is_database(self) -> bool:
        return self.path.startswith(DATABASES)

    @property
    def shown(self) -> str:
        """Without the password that an address may hold."""
        return "the database" if self.is_database else self.path


def find(names: Sequence[str], query: str = "") -> list[Place]:
    """The files of these names and patterns, in order.

    Raises:
        UnreadableFile: a name matches nothing, or a database has no query.
    """
    found = []
    for name in names:
        if name.startswith(DATABASES):
            if not query:
                raise UnreadableFile("a database needs --query 'SELECT ... ORDER BY ...'")
            found.append(Place(name, query))
            continue
        paths = sorted(glob.glob(name, recursive=True)) or ([name] if Path(name).is_file() else [])
        if not paths:
            raise UnreadableFile(f"there is no file {name!r} (looked from {Path.cwd()})")
        found += [Place(path) for path in paths]
    return found


@contextmanager
def opened(place: Place, mapping: Mapping) -> Iterator[Rows]:
    """The rows of a place under a mapping.

    Raises:
        UnreadableFile: it cannot be read. BadMapping: a column is missing.
    """
    connection = duckdb.connect()
    try:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"SET memory_limit = '{_MEMORY}'")
        connection.execute(
            "SET threads = 1"
        )  # rows keep their order, and other processes their CPU
        with errors_named(place):
            if place.is_database:
                with _database(place) as reader:
                    connection.register("rows_of_database", reader)
                    yield Rows(connection, place, mapping, "rows_of_database", reader.schema.names)
            else:
                table = _table(place, mapping)
                is_json = _format(place, mapping) == "json"
                yield Rows(
                    connection,
                    place,
                    mapping,
                    table,
                    None if is_json else _columns(connection, table),
                )
    finally:
        connection.close()


@contextmanager
def errors_named(place: Place) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "unreadable")
        raise UnreadableFile(f"{place.shown}: {first}") from None


@contextmanager
def _database(place: Place) -> Iterator[pa.RecordBatchReader]:
    try:
        import adbc_driver_postgresql.dbapi as postgres
    except ImportError:
        raise UnreadableFile(
            "Postgres is read by ADBC, an extra: pip install 'tidemill[postgres]'"
        ) from None
    try:
        with postgres.connect(place.path) as connection, connection.cursor() as cursor:
            cursor.execute(place.query)
            yield cursor.fetch_record_batch()
    except postgres.Error as error:
        # The driver's message may hold the address, and that a password.
        text = str(error).replace(place.path, "the database").splitlines()[0]
        raise UnreadableFile(f"the database: {text}") from None


def _format(place: Place, mapping: Mapping) -> str:
    if mapping.format:
        return mapping.format
    suffixes = [suffix for suffix in Path(place.path).suffixes if suffix not in (".gz", ".zst")]
    found = _FORMATS.get(suffixes[-1].lower() if suffixes else "")
    if found is None:
        raise BadMapping(
            f'{place.path}: the name does not say its format; write format = "csv", "parquet" or '
            '"json" in the mapping'
        )
    return found


def _table(place: Place, mapping: Mapping) -> str:
    path, form = literal(place.path), _format(place, mapping)
    if form == "parquet":
        if mapping.each:
            return f'(SELECT to_json(t) AS "{JSON_COLUMN}" FROM read_parquet({path}) t)'
        return f"read_parquet({path})"
    if form == "json":
        size = f"maximum_object_size = {MAX_DOCUMENT_BYTES}"
        return f'(SELECT json AS "{JSON_COLUMN}" FROM read_json_objects({path}, {size}))'
    options = [
        "all_varchar = true",
        f"header = {str(mapping.header).lower()}",
        "sample_size = 2048",
        "null_padding = true",  # of a short row admission names what is absent
        "quote = '\"'",
        f"delim = {literal(mapping.delimiter or _delimiter(place))}",
    ]
    if mapping.columns:
        options.append(f"names = [{', '.join(map(literal, mapping.columns))}]")
    return f"read_csv({path}, {', '.join(options)})"


def _delimiter(place: Place) -> str:
    """The sign that the first line has most of; a guess over many rows fails by one ragged row."""
    opens: Any = gzip.open if place.path.endswith(".gz") else open
    try:
        with opens(place.path, "rt", encoding="utf-8-sig", errors="replace") as file:
            first = file.readline(_HEADER_CHARACTERS)
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableFile(f"{place.shown}: {error}") from None
    return max(",\t;|", key=first.count)


def _columns(connection: duckdb.DuckDBPyConnection, table: str) -> list[str] | None:
    found: list[tuple[Any, ...]] = connection.execute(f"DESCRIBE SELECT * FROM {table}").fetchall()
    names = [str(row[0]) for row in found]
    return None if names == [JSON_COLUMN] else names


class Rows:
    """Rows of one place as messages."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        place: Place,
        mapping: Mapping,
        table: str,
        columns: Sequence[str] | None,
    ) -> None:
        self.place, self.columns = place, columns
        self._connection, self._table = connection, table
        self._sql = RowSql(mapping, columns)

    def newest_ms(self) -> int | None:
        """The largest event time. It reads the place: open that again for its rows."""
        with errors_named(self.place):
            row = self._connection.execute(self._sql.newest(self._table)).fetchone()
        return None if row is None or row[0] is None else int(row[0])

    def pieces(
        self, *, shift_ms: int, now_ms: int, rows: int = PIECE_ROWS
    ) -> Iterator[pa.RecordBatch]:
        """Columns row, key, kind, raw_kind and body, in the order of the place."""
        query = self._sql.query(self._table, self.place.key, shift_ms, now_ms)
        with errors_named(self.place):
            reader = self._connection.sql(query).to_arrow_reader(rows)
            while True:
                try:
                    yield reader.read_next_batch()
                except StopIteration:
                    return
                except (pa.ArrowInvalid, OSError) as error:
                    raise UnreadableFile(f"{self.place.shown}: {error}") from None


def sample(path: str, rows: int = 1_000) -> dict[str, list[str | None]]:
    """Column -> the first values as text, of a CSV or Parquet file.

    Raises:
        UnreadableFile: there is no such file, or it is of another form.
    """
    (place,) = find([path])
    bare = Mapping.model_construct(fields={})
    connection = duckdb.connect()
    try:
        with errors_named(place):
            if _format(place, bare) == "json":
                raise UnreadableFile(
                    f"{path}: write the mapping of JSON lines by hand (--show ga4)"
                )
            found = connection.sql(f"SELECT * FROM {_table(place, bare)} LIMIT {rows}")
            table = found.to_arrow_table()
    except BadMapping as error:
        raise UnreadableFile(str(error)) from None
    finally:
        connection.close()
    return {
        name: [None if value is None else str(value) for value in table[name].to_pylist()]
        for name in table.column_names
    }
