import io
import logging

import pytest

from sterna import log


@pytest.fixture
def written():
    stream = io.StringIO()
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    log.setup("info", stream)
    yield stream
    root.setLevel(level)
    root.handlers[:] = handlers


def test_a_record_is_one_line_with_time_level_and_logger(written):
    logging.getLogger("sterna.test").info("it is %s", "done")
    (line,) = written.getvalue().splitlines()
    time, level, logger, text = line.split(" ", 3)
    assert time.endswith("Z")
    assert (level, logger, text) == ("INFO", "sterna.test:", "it is done")


def test_a_traceback_stays_on_the_line_of_its_record(written):
    error = ValueError("two\nlines")
    logging.getLogger("sterna.test").error("it broke\nbadly", exc_info=error)
    (line,) = written.getvalue().splitlines()
    assert "it broke | badly | ValueError" in line
    assert "ValueError: two | lines" in line


def test_secrets_never_appear(written):
    logger = logging.getLogger("sterna.test")
    logger.info("token sterna1.WyJjb3JyZWN0-horse_ given")
    logger.info("headers {'authorization': 'Bearer abc.def-123', 'x': 1}")
    logger.info("-----BEGIN PRIVATE KEY-----\nMIIabc\n-----END PRIVATE KEY-----")
    logger.error("failed", exc_info=ValueError("sterna1.WyJhorse"))
    text = written.getvalue()
    for secret in ("horse", "abc.def", "MIIabc"):
        assert secret not in text
    assert text.count(log.HIDDEN) >= 4
    assert "'x': 1" in text


def test_levels_hold_and_a_second_setup_replaces_the_first(written):
    again = io.StringIO()
    log.setup("warning", again)
    logging.getLogger("sterna.test").info("no")
    logging.getLogger("sterna.test").warning("yes")
    logging.getLogger("uvicorn.error").info("no")
    assert written.getvalue() == ""
    assert again.getvalue().endswith("WARNING sterna.test: yes\n")
