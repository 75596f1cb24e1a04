"""Every problem has a stable code, one clear sentence, and the exit code of its family."""

import importlib
import pkgutil
import re
import string

import pytest

import sterna
from sterna import errors
from sterna.errors import PROBLEMS, RemoteError, SternaError, from_problem

CODE = re.compile(r"[a-z]+(\.[a-z]+(-[a-z]+)*)?")


def load_all() -> None:
    """Errors may be defined beside what raises them; import all modules to see them."""
    for module in pkgutil.walk_packages(sterna.__path__, "sterna."):
        importlib.import_module(module.name)


def concrete() -> list[type[SternaError]]:
    load_all()

    def below(cls: type[SternaError]) -> list[type[SternaError]]:
        found = [cls] if "code" in vars(cls) else []
        return found + [deeper for child in cls.__subclasses__() for deeper in below(child)]

    return below(SternaError)


def fields(template: str) -> set[str]:
    return {
        re.split(r"[.\[]", name)[0] for _, name, _, _ in string.Formatter().parse(template) if name
    }


def test_every_code_belongs_to_one_class():
    codes = [cls.code for cls in concrete()]
    assert sorted(codes) == sorted(set(codes))


def test_the_table_holds_every_class_of_the_errors_module():
    here = {cls.code: cls for cls in concrete() if cls.__module__.startswith(f"{errors.__name__}.")}
    assert here == PROBLEMS


@pytest.mark.parametrize("cls", list(PROBLEMS.values()), ids=lambda cls: cls.code)
def test_a_problem_is_complete(cls):
    assert CODE.fullmatch(cls.code), "a code is area.name in lower case with dashes"
    assert cls.text
    assert not cls.text.endswith("."), (
        "the sentence is put into others; it ends without a full stop"
    )
    assert cls.status in range(400, 600)
    assert cls.exit_code in range(1, 12)


@pytest.mark.parametrize("cls", list(PROBLEMS.values()), ids=lambda cls: cls.code)
def test_a_problem_survives_the_journey_over_http(cls):
    facts = dict.fromkeys(fields(cls.text) | fields(cls.hint), 3)
    error = cls(**facts)
    body = error.problem()
    assert "<" not in error.message, "all facts are filled in"
    assert error.message == body["title"] == str(error)
    assert body["status"] == cls.status
    again = from_problem(body)
    assert type(again) is cls
    assert (again.message, again.advice) == (error.message, error.advice)


@pytest.mark.parametrize("cls", list(PROBLEMS.values()), ids=lambda cls: cls.code)
def test_a_sentence_with_a_missing_fact_still_reads(cls):
    assert isinstance(cls().message, str)


def test_a_problem_that_this_version_does_not_know_keeps_its_words():
    body = {"code": "future.thing", "title": "the future failed", "hint": "wait", "status": 500}
    error = from_problem(body)
    assert isinstance(error, RemoteError)
    assert (error.message, error.advice) == ("the future failed", "wait")
    assert error.problem() == body


def test_facts_that_json_cannot_hold_become_texts():
    error = errors.VMNotFound(host="hv-a", vm="web", tried={"a": (1, object)})
    assert error.problem()["facts"]["tried"]["a"][0] == 1


@pytest.mark.parametrize(
    ("family", "status", "exit_code"),
    [
        (errors.Invalid, 400, 2),
        (errors.Refused, 422, 3),
        (errors.NotFound, 404, 4),
        (errors.Conflict, 409, 4),
        (errors.Denied, 403, 5),
        (errors.Unreachable, 502, 6),
        (errors.Failed, 500, 1),
        (errors.TimedOut, 504, 1),
        (errors.Cancelled, 409, 7),
        (errors.Unknown, 500, 9),
        (errors.Partial, 500, 11),
    ],
)
def test_the_family_decides_what_scripts_see(family, status, exit_code):
    assert (family.status, family.exit_code) == (status, exit_code)
