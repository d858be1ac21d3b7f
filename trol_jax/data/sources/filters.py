"""Which rows of a file belong to the mixture, decided while the file is indexed, without parsing whole rows."""

import dataclasses
import json
import re

IMAGE = re.compile(rb'(?<!\\)"image"\s*:\s*("(?:[^"\\]|\\.)*")?')  # the key, with its value if that is text


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
    """The path in the field "image", or "" """
    found = IMAGE.findall(row)
    if not found:
        return ""
    try:
        if len(found) == 1 and found[0]:
            return json.loads(found[0])
        value = json.loads(row).get("image")  # several fields of this name, or no text: seldom, so it may take time
    except ValueError:
        return ""  # damaged; whoever reads the row is told
    if isinstance(value, list):
        value = value[0] if value else ""
    return value if isinstance(value, str) else ""
