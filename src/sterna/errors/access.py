"""Who may not do this, and why; and what was done could not be written down."""

from __future__ import annotations

from sterna.errors.family import Conflict, Denied, Failed, Invalid, NotFound


class RoleTooLow(Denied):
    code = "access.role"
    text = "{what} on {host} needs {needed}; {who} has {grant}"
    hint = "An administrator of {host} gives roles: sterna user set, token create, host set-role"


class NotProven(Denied):
    """401: who asks has proven nothing, or what counts no more."""

    code = "access.not-proven"
    text = "{host} does not know who asks: {reason}"
    hint = "{fix}"
    status = 401


class LogInRefused(Denied):
    """Said of unknown users and wrong passwords alike."""

    code = "access.log-in"
    text = "the user name or the password is wrong"
    hint = "An administrator sets a new password: sterna user passwd NAME"
    status = 401


class LockedOut(Denied):
    code = "access.locked-out"
    text = "too many log-ins have failed: no more of them are looked at for {seconds:g} s"
    hint = "Wait; or root of {host} uses its Unix socket, which asks for no password"
    status = 429


class Forged(Denied):
    """A request that a browser may have sent without its user's will."""

    code = "access.csrf"
    text = "{what} does not carry the CSRF token of its session"
    hint = "Send the `csrf` of POST /v1/sessions or GET /v1/me as X-CSRF-Token"


class UserNotFound(NotFound):
    code = "access.no-user"
    text = "{host} has no user called {user}"
    hint = "See: sterna user list"


class UserExists(Conflict):
    code = "access.user-exists"
    text = "{host} has a user called {user} already"
    hint = "Change it: sterna user set {user}"


class CertificateTaken(Conflict):
    code = "access.certificate-taken"
    text = "this certificate is that of {owner} already"
    hint = "A certificate proves one user or one host; make another for {user}"


class PrincipalTaken(Conflict):
    code = "access.principal-taken"
    text = "tickets of {principal} prove {owner} already"
    hint = "Take them from {owner} first: sterna user set {owner} --kerberos none"


class TicketRefused(Denied):
    """On the side of who asks: there is no ticket to show."""

    code = "kerberos.no-ticket-for"
    text = "no ticket for {service}: {reason}"
    hint = "{fix}"
    status = 401


class NotDelegated(Denied):
    """A host does not show for whom it sends a VM."""

    code = "access.not-delegated"
    text = "{host} takes {vm} only with the ticket of a user who may move it, and was shown none"
    hint = (
        "Move it as such a user: sterna login SOURCE --kerberos; see what is missing with: sudo -E "
        "sterna kerberos check {host}"
    )


class APITokenNotFound(NotFound):
    code = "access.no-token"
    text = "{host} has no token called {token}"
    hint = "See: sterna token list"


class APITokenExists(Conflict):
    code = "access.token-exists"
    text = "{host} has a token called {token} already"
    hint = "Revoke it first: sterna token revoke {token}"


class BadAPIToken(Invalid):
    code = "access.bad-token"
    text = "{where} holds no token of `sterna token create`"
    hint = "It is one line that begins with sternat1."


class AuditNotWritten(Failed):
    code = "audit.not-written"
    text = "nothing was done, for it cannot be written down in {path}: {reason}"
    hint = "Make room there. What is under way goes on, and looking is always possible"
    status = 507
