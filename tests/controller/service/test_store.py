"""The database and the disk: what they promise."""

import subprocess
import sys
import threading
from pathlib import Path

import alembic.autogenerate
import alembic.command
import pytest
from alembic.migration import MigrationContext
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError

from controller.errors import ConflictError
from controller.store import outbox
from controller.store.engine import Store, alembic_config, migrations_folder
from controller.store.files import FileStore
from controller.store.lock import one_service
from controller.store.models import Base, DeviceGroupRow, GroupRow
from controller.store.views import VIEWS, drop_views, has_views
from protocol.codec import sha256
from protocol.errors import DigestError, ProtocolError
from protocol.identifiers import Digest


@pytest.fixture
def store(tmp_path: Path):  # type: ignore[no-untyped-def]
    opened = Store(f"sqlite:///{tmp_path}/fleet.db")
    opened.migrate()
    yield opened
    opened.close()


def test_models_and_migrations_agree(store: Store) -> None:
    """Whoever changes a table writes the revision as well."""
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert [] == alembic.autogenerate.compare_metadata(context, Base.metadata)


def test_every_revision_can_be_undone(store: Store) -> None:
    """Down to nothing, and up again."""
    with store.engine.connect() as connection:
        drop_views(connection)
        connection.commit()
        alembic.command.downgrade(alembic_config(connection), "base")
        left = set(connection.execute(text("SELECT name FROM sqlite_master")).scalars())
        assert {"alembic_version"} == {name for name in left if not name.startswith("sqlite_")}
    store.migrate()
    with store.read() as session:
        for view in VIEWS:
            session.execute(text(f"SELECT * FROM {view.name}"))


OLD_ROWS = {
    "devices": "INSERT INTO devices VALUES ('press-1', x'00', 'a1', 1, 'online', 2, 'stream', 3, 4, 'x86_64', '0.1.0',"
    " NULL, '[]', NULL, 7, 6)",
    "acks": "INSERT INTO acks VALUES ('press-1', 'stream', 5, 6, 0, 0, 7)",
}


def test_a_database_of_the_first_revision_keeps_its_data(tmp_path: Path) -> None:
    """Whatever was added since."""
    old = Store(f"sqlite:///{tmp_path}/fleet.db")
    with old.engine.connect() as connection:
        alembic.command.upgrade(alembic_config(connection), "0001")
        for statement in OLD_ROWS.values():
            connection.execute(text(statement))
        before = {name: connection.execute(text(f"SELECT * FROM {name}")).mappings().one() for name in OLD_ROWS}
        connection.commit()
    old.migrate()
    with old.read() as session:
        for name, row in before.items():
            after = session.execute(text(f"SELECT * FROM {name}")).mappings().one()
            assert dict(row) == {column: after[column] for column in row}
        assert "press-1" == session.execute(text("SELECT device FROM fleet_status")).scalar_one()
    old.close()


def test_the_views_of_another_version_are_replaced_at_the_start(store: Store) -> None:
    """One that is missing, one that reads something else, one that is no more."""
    with store.engine.begin() as connection:
        connection.execute(text("DROP VIEW error_log"))
        connection.execute(text("DROP VIEW audit_log"))
        connection.execute(text("CREATE VIEW audit_log AS SELECT 1 AS other"))
        connection.execute(text("CREATE VIEW of_another_version AS SELECT 1 AS x"))
    store.migrate()
    with store.engine.connect() as connection:
        assert has_views(connection)


def test_the_revisions_are_where_the_package_looks(tmp_path: Path) -> None:
    """Beside the packages in a source tree, inside one when installed."""
    assert (migrations_folder() / "env.py").is_file()


def test_the_database_is_made_to_survive_a_power_cut(store: Store) -> None:
    """WAL, every commit on the disk, foreign keys enforced, patience with other readers."""
    with store.read() as session:
        found = [
            session.scalar(text(f"PRAGMA {p}")) for p in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert ["wal", 2, 1, 5_000] == found
    with pytest.raises(IntegrityError), store.write() as session:
        session.add(DeviceGroupRow(device_id="nobody", group_name="nothing"))


def test_writers_take_turns_and_readers_do_not_wait(store: Store) -> None:
    """Many threads at once: no "database is locked", nothing lost."""

    def count_up() -> None:
        for _ in range(20):
            with store.write() as session:
                outbox.mark(session, "ack", ["device"])

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    with store.read() as reader:
        assert reader.scalar(text("SELECT count(*) FROM outbox")) == 0
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert reader.scalar(text("SELECT count(*) FROM outbox")) == 0  # one state, whatever is committed meanwhile
    with store.read() as session:
        (item,) = outbox.take(session, "ack", 10)
    assert 80 == item.generation


def test_a_write_that_fails_leaves_nothing(store: Store) -> None:
    """All or nothing."""

    def fail() -> None:
        with store.write() as session:
            session.add(GroupRow(name="half", created_at_ms=1))
            session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with store.read() as session:
        assert session.get(GroupRow, "half") is None


def test_what_changes_while_it_is_published_is_published_again(store: Store) -> None:
    """The outbox forgets only what the broker has."""
    with store.write() as session:
        outbox.mark(session, "director", ["a", "b", "a"])
    with store.read() as session:
        items = outbox.take(session, "director", 10)
    with store.write() as session:
        outbox.mark(session, "director", ["b"])
    with store.write() as session:
        outbox.done(session, items)
    with store.read() as session:
        assert ["b"] == [item.key for item in outbox.take(session, "director", 10)]
        assert not outbox.is_empty(session)


def test_the_outbox_takes_any_number(store: Store) -> None:
    """More keys than a statement has room for, in few statements."""
    statements: list[str] = []
    event.listen(store.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    keys = [f"device-{n}" for n in range(2_500)]
    for _ in range(2):
        with store.write() as session:
            outbox.mark(session, "assign", keys)
    with store.read() as session:
        assert {2} == {item.generation for item in outbox.take(session, "assign", 5_000)}
    assert len(statements) < 60


def test_a_database_belongs_to_one_service(tmp_path: Path) -> None:
    """A second process is refused; the lock ends with its holder."""
    code = "import sys; from pathlib import Path; from controller.store.lock import one_service\n"
    code += "with one_service(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert b"held\n" == holder.stdout.readline()
        with pytest.raises(ConflictError, match="another service runs"), one_service(tmp_path):
            pass
        holder.kill()
    with one_service(tmp_path):
        pass


class TestFiles:
    """Content by its digest."""

    @pytest.mark.parametrize("data", [b"x", bytes(300_000), bytes(range(256)) * 1_000])
    def test_a_blob_adds_up_to_its_file(self, tmp_path: Path, data: bytes) -> None:
        """Cut twice it is the same."""
        files = FileStore(tmp_path)
        digest = keep(files, data)
        blob, index = files.cut(digest)
        assert (blob, index) == files.cut(digest)
        assert index == files.index(blob)
        encoded = b"".join(files.chunk(blob, index, n) for n in range(len(index.chunks)))
        assert index.encoded_size == len(encoded)

    def test_a_damaged_file_is_not_cut(self, tmp_path: Path) -> None:
        """What the disk changed is not published."""
        files = FileStore(tmp_path)
        digest = keep(files, b"content")
        files.path(digest).write_bytes(b"changed")
        with pytest.raises(DigestError, match="damaged"):
            files.cut(digest)

    def test_a_damaged_blob_is_not_read(self, tmp_path: Path) -> None:
        """Neither its chunks nor its index."""
        files = FileStore(tmp_path)
        blob, index = files.cut(keep(files, bytes(100_000)))
        (tmp_path / "blobs" / f"{blob}.data").write_bytes(b"?" * index.encoded_size)
        with pytest.raises(DigestError):
            files.chunk(blob, index, 0)
        (tmp_path / "blobs" / f"{blob}.index").write_bytes(b"{}")
        with pytest.raises(ProtocolError):
            files.index(blob)

    def test_what_was_half_uploaded_is_swept_away_at_the_next_start(self, tmp_path: Path) -> None:
        """A killed service leaves no rubbish for ever."""
        FileStore(tmp_path)
        (tmp_path / "incoming" / "left").write_bytes(b"half")
        FileStore(tmp_path)
        assert [] == list((tmp_path / "incoming").iterdir())


def keep(files: FileStore, data: bytes) -> Digest:
    digest = sha256(data)
    with files.upload(digest) as upload:
        upload.write(data)
        upload.commit()
    return digest
