"""Which rows of a file belong to the mixture, decided while the file is indexed, without parsing whole rows."""

import dataclasses
import json
import re

KEY = b'"image"'
VALUE = re.compile(rb'\s*:\s*"([^"\\]*)"')  # what follows the key, if it is text without escapes


@dataclasses.dataclass(frozen=True)
class ByPicture:
    """Keeps rows by the beginning of their picture's path: any of `kept`, or none of `dropped`.

    Rows without a picture fall to the filters that name what is kept. Called with the bytes of a row.
    """

    kept: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def __call__(self, row: bytes) -> bool:
        path = _picture(row).removeprefix("./")
        return path.startswith(self.kept) if self.kept else not path.startswith(self.dropped)


def _picture(row: bytes) -> str:
    """The path in the field "image", or "". Where the key is there once, at whatever depth, its value says it all."""
    place = row.find(KEY)
    if place < 0:
        return ""
    try:
        value = VALUE.match(row, place + len(KEY))
        if value and row[place - 1] != ord("\\") and row.find(KEY, place + 1) < 0:
            return value[1].decode()
        value = json.loads(row).get("image")
    except (ValueError, RecursionError):
        return ""  # damaged; whoever reads the row is told
    if isinstance(value, list):
        value = value[0] if value else ""
    return value if isinstance(value, str) else ""
