"""What a device asks for when a retained document did not come."""

from agent.documents import FIRST_PATIENCE_MS, MAX_PATIENCE_MS, Documents
from agent.trust import Document, Judgement
from protocol.messages import Want


class _Trust:
    """Believes everything."""

    def judge(self, document: Document, raw: bytes, wall_ms: int) -> Judgement:
        return Judgement()


def test_lost_director_document_is_asked_for_ever_more_rarely() -> None:
    """A device that was never assigned anything asks as well, but never more often than the patience allows."""
    wants: list[Want] = []
    documents = Documents(_Trust(), lambda _: None, wants.append)  # type: ignore[arg-type] # the part that it uses
    documents.connected(0)
    for name in ("timestamp", "metadata"):
        documents.receive(name, b"raw", wall_ms=0, now_ms=0)
    asked = []
    for now_ms in range(0, 4 * MAX_PATIENCE_MS, 1_000):
        before = len(wants)
        documents.tick(wall_ms=0, now_ms=now_ms)
        asked += [now_ms] if len(wants) > before else []
    assert {Want(kind="director")} == set(wants)
    assert FIRST_PATIENCE_MS == asked[0]
    assert MAX_PATIENCE_MS == asked[-1] - asked[-2]
    assert len(asked) < 15
    documents.receive("director", b"raw", wall_ms=0, now_ms=now_ms)
    wants.clear()
    documents.tick(wall_ms=0, now_ms=now_ms + MAX_PATIENCE_MS)
    assert [] == wants
