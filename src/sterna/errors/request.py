"""Requests that cannot be carried out as they are."""

from __future__ import annotations

from sterna.errors.family import Invalid, NotFound


class BadSpec(Invalid):
    code = "request.invalid"
    text = "{where}: {reason}"
    hint = "See: sterna vm create --help"


class Unconfirmed(Invalid):
    code = "request.unconfirmed"
    text = "{action} asks first, and this is not a terminal"
    hint = "Give --yes to do it without being asked"


class BadSize(Invalid):
    code = "request.bad-size"
    text = "{value!r} is not a size: {reason}"
    hint = "Write a positive number with a unit, such as 512MiB or 10GiB"


class NoSuchPath(NotFound):
    code = "request.no-such-path"
    text = "this API has nothing at {path}"
    hint = "See what it has at /v1/openapi.json"


class BadMethod(Invalid):
    code = "request.bad-method"
    text = "{path} does not know {method}"
    hint = "See what it knows at /v1/openapi.json"
    status = 405


class TooLarge(Invalid):
    code = "request.too-large"
    text = "the request is larger than {limit} bytes"
    status = 413


class TooSlow(Invalid):
    code = "request.too-slow"
    text = "the request did not arrive within {seconds:g} s"
    status = 408


class BadHost(Invalid):
    code = "request.bad-host"
    text = "{host!r} is not a host: {reason}"
    hint = "Give a known name, https://HOST:PORT or unix:///PATH"


class BadConfig(Invalid):
    code = "config.invalid"
    text = "{path}: {reason}"
    hint = "Correct the file and start again"
