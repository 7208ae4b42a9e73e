"""Files that survive a loss of power: what is durable before what, seen at each `fsync`."""

from pathlib import Path

import pytest

from agent import durable
from tests.agent.conftest import Syncs
from tests.agent.disk import mounted


def test_content_is_durable_before_the_name_and_the_name_before_it_is_relied_on(tmp_path: Path, syncs: Syncs) -> None:
    """At the first sync the old file still has the name, at the last the new one, and the draft is gone."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    durable.replace(path, b"new")
    written, drafted, named = syncs
    assert (b"new", {"file": b"old"}) == (written.data, written.beside)
    assert (tmp_path, tmp_path) == (drafted.path, named.path)
    assert {"file": b"new"} == named.beside
    assert 0o600 == path.stat().st_mode & 0o777


def test_file_that_is_created_is_durable_with_its_name(tmp_path: Path, syncs: Syncs) -> None:
    """Its content first, then the folder; one that exists already stays as it is."""
    path = tmp_path / "file"
    durable.create(path, b"new")
    assert [(path, b"new"), (tmp_path, b"")] == [(each.path, each.data) for each in syncs]
    with pytest.raises(FileExistsError):
        durable.create(path, b"other")
    assert b"new" == path.read_bytes()


@pytest.mark.needs("tmpfs")
def test_disk_without_room_keeps_the_old_file_and_no_half_of_the_new(tmp_path: Path) -> None:
    """The room that the draft took is given back."""
    with mounted(tmp_path / "disk", 1 << 20) as disk:
        path = disk.folder / "file"
        path.write_bytes(b"old")
        for write in (durable.replace, lambda path, data: durable.create(path.with_name("new"), data)):
            with pytest.raises(OSError, match="No space left"):
                write(path, bytes(2 << 20))
            assert {"file": b"old"} == {each.name: each.read_bytes() for each in disk.folder.iterdir()}


def test_draft_of_a_killed_attempt_is_no_hindrance(tmp_path: Path) -> None:
    """What was half written is written again."""
    (tmp_path / ".file.tmp").write_bytes(b"ha")
    durable.replace(tmp_path / "file", b"half")
    assert [tmp_path / "file"] == list(tmp_path.iterdir())
