"""Golden files: what a command printed once, checked by a person, must not change by accident.

Regenerate with STERNA_GOLDEN=write, and read the difference before you commit it.
"""

import os
from pathlib import Path

FOLDER = Path(__file__).parent


def check(name: str, text: str) -> None:
    """`text` is what the file `name` holds; or write it there if that is asked for."""
    file = FOLDER / name
    if os.environ.get("STERNA_GOLDEN") == "write":
        file.write_text(text)
        return
    assert file.exists(), f"{name} does not exist yet; make it with STERNA_GOLDEN=write"
    assert text == file.read_text(), f"{name} differs; if that is right: STERNA_GOLDEN=write"
