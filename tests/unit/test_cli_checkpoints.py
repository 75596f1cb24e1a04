"""How the tree of checkpoints is drawn."""

from __future__ import annotations

from sterna.cli.checkpoint_view import branches


def row(name: str, parent: str = "", *, here: bool = False) -> dict[str, object]:
    return {
        "name": name,
        "parent": parent,
        "is_current": here,
        "created": "",
        "memory": None,
        "disks": {},
    }


def test_a_branch_is_below_what_it_came_from_and_now_is_a_leaf():
    rows = [row("a"), row("b", "a"), row("c", "b"), row("d", "a", here=True), row("z")]
    assert branches(rows, "") == [
        "a ()",
        " ├─ b ()",
        " │  └─ c ()",
        " └─ d ()",
        "    └─ now",
        "z ()",
    ]
