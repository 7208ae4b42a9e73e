"""Small values of the service's own."""

from sqlalchemy.orm import Session

from controller.store.models import SettingRow


def get_setting(session: Session, key: str, default: str = "") -> str:
    """Return the value under `key`."""
    row = session.get(SettingRow, key)
    return default if row is None else row.value


def put_setting(session: Session, key: str, value: str) -> None:
    """Keep `value` under `key`."""
    session.merge(SettingRow(key=key, value=value))
