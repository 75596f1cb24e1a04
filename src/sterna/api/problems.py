"""Every error as RFC 9457 problem details: ours, the framework's, and the unexpected."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from sterna.errors import BadMethod, BadSpec, NoSuchPath, SternaError

log = logging.getLogger(__name__)

MEDIA = "application/problem+json"
UNEXPECTED = "sternad met an error it did not expect; its log says more"
PLACES = {"body": "the request", "query": "the query", "path": "the path", "header": "the headers"}


def answer(
    error: SternaError, headers: Mapping[str, str] | None = None, status: int | None = None
) -> JSONResponse:
    """The response that tells `error`, with another status than its own if given."""
    body = error.problem()
    if status:
        body["status"] = status
    return JSONResponse(body, body["status"], headers=headers, media_type=MEDIA)


def install(app: FastAPI) -> None:
    """Make `app` answer every error as a problem."""
    app.add_exception_handler(SternaError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


async def _known(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SternaError)
    if type(error) is SternaError:
        log.error("an unnamed error reached the API", exc_info=error)
    return answer(error)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    findings = error.errors()
    where = PLACES.get(str(findings[0]["loc"][0]), "the request")
    return answer(BadSpec(where=where, reason=sentence(findings)))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    facts = {"method": request.method, "path": request.url.path}
    match error.status_code:
        case 404:
            return answer(NoSuchPath(**facts))
        case 405:
            return answer(BadMethod(**facts), error.headers)
        case 400:
            return answer(BadSpec(where="the request", reason=str(error.detail)))
    log.error("HTTP %d: %s", error.status_code, error.detail)
    return answer(SternaError(detail=str(error.detail)), error.headers)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    # The server logs the traceback: this handler's error is raised again after the answer.
    log.error("%s %s failed: %s", request.method, request.url.path, type(error).__name__)
    return answer(SternaError(detail=UNEXPECTED))


def sentence(findings: Sequence[Any]) -> str:
    """The first of pydantic's findings as a person would say it, and how many more there are."""
    first = findings[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    match first["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            text = f"unknown field {place!r}"
        case "missing" | "missing_keyword_only_argument" | "missing_argument":
            text = f"field {place!r} is missing" if place else "it needs a body"
        case "json_invalid":
            text = f"it is not JSON: {first['ctx']['error']}"
        case "value_error":
            reason = str(first["ctx"]["error"])
            text = f"{place}: {reason}" if place else reason
        case _:
            text = f"{place}: {first['msg']}" if place else str(first["msg"])
    more = len(findings) - 1
    return text if not more else f"{text} (and {more} more)"
