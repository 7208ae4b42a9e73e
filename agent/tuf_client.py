"""The Update Framework's client workflow as python-tuf has it, without the downloader that comes with it.

`tuf.ngclient` loads urllib3 for a default fetcher, though its user may bring another: 1.3 MB that this device would
keep for nothing, and more where urllib3 finds a package to decompress with. Here a name stands in for that one module
while the package is loaded; what verifies is the library's own, whole. Asked to download, the stand-in refuses.
"""

import sys
from types import ModuleType
from typing import Final

_FETCHER: Final = "tuf.ngclient.urllib3_fetcher"


class NoFetcher:
    """Stands where `tuf.ngclient` expects its default fetcher."""

    def __init__(self, *_: object, **__: object) -> None:
        raise TypeError("expected a fetcher of the agent's own, got none: an agent downloads nothing by itself")


_is_first = "tuf.ngclient" not in sys.modules and _FETCHER not in sys.modules
if _is_first:
    _stand_in = ModuleType(_FETCHER)
    _stand_in.__dict__["Urllib3Fetcher"] = NoFetcher
    sys.modules[_FETCHER] = _stand_in
try:
    from tuf.ngclient import FetcherInterface, Updater
finally:
    if _is_first:
        del sys.modules[_FETCHER]  # whoever asks for it by its name gets the real one

__all__ = ["FetcherInterface", "Updater"]
