"""The lab."""

from __future__ import annotations

from sterna.errors.family import Conflict, Denied, Failed, NotFound, Partial, Refused


class LabNeedsRoot(Denied):
    code = "lab.needs-root"
    text = "the lab makes network namespaces, which only root may do"
    hint = "Run it again with: sudo sterna lab {command}"


class LabToolMissing(Refused):
    code = "lab.tool-missing"
    text = "the lab needs the command {tool}, which is not installed"
    hint = "apt-get install {package}"


class LabNotFound(NotFound):
    code = "lab.not-found"
    text = "there is no lab called {lab}"
    hint = "Make it with: sterna lab up --name {lab}"


class LabExists(Conflict):
    code = "lab.exists"
    text = "there is a lab called {lab} already"
    hint = "Use it (sterna lab status --name {lab}) or remove it (sterna lab down --name {lab})"


class LabFailed(Failed):
    code = "lab.failed"
    text = "the lab {lab} could not {action}: {reason}"
    hint = "{fix}"


class LabLeftovers(Partial):
    code = "lab.leftovers"
    text = "the lab {lab} left something behind: {leftovers}"
    hint = "Run it again: sterna lab down --name {lab}"


class LabProofFailed(Failed):
    """What the guest felt or says contradicts what a move must keep."""

    code = "lab.proof-failed"
    text = "{vm} did not come through: {reason}"
    hint = "Run it again with --keep and look at the logs in {folder}"
