"""VMs as folders: exports and imports."""

from __future__ import annotations

from sterna.errors.family import Cancelled, Failed, Partial, Refused


class ExportRefused(Refused):
    code = "export.refused"
    text = "{vm} cannot be exported to {folder}: {reason}"
    hint = "{fix}"


class ExportFailed(Failed):
    code = "export.failed"
    text = "{vm} was not exported to {folder}, and nothing is left there: {reason}"
    hint = "{fix}"


class ExportCancelled(Cancelled):
    code = "export.cancelled"
    text = "the export of {vm} to {folder} was cancelled, and nothing is left there"


class PortLeftovers(Partial):
    code = "port.leftovers"
    text = "the {what} of {vm} {outcome}, but something was left behind: {leftovers}"
    hint = "sternad clears it at its next start"


class NotAnExport(Refused):
    code = "import.unreadable"
    text = "{folder} is no exported VM: {reason}"
    hint = "{fix}"


class ImportRefused(Refused):
    """Checks found blockers; `findings` holds each check's id, finding and fix."""

    code = "import.refused"
    text = "{vm} cannot be imported from {folder}: {summary}"
    hint = "{fix}"


class ImportFailed(Failed):
    code = "import.failed"
    text = "the import of {vm} from {folder} failed and was undone: {reason}"
    hint = "{fix}"


class ImportCancelled(Cancelled):
    code = "import.cancelled"
    text = "the import of {vm} from {folder} was cancelled and undone"
