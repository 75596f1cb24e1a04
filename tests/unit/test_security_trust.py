"""Tokens, proofs and records of trust, without a network."""

import pytest

from sterna import clock
from sterna.errors import BadToken, TokenRefused
from sterna.model.trust import JoinRequest, PeerRecord
from sterna.security import identity, invitation
from sterna.security.invitation import Invitations
from sterna.security.trust import Trust

URL = "https://192.0.2.1:7443"
URL_B = "https://192.0.2.2:7443"
INVITER = "a" * 64


@pytest.fixture(scope="module")
def joiner(tmp_path_factory):
    return identity.ensure(tmp_path_factory.mktemp("b"), "hv-b", "192.0.2.2")


@pytest.fixture
def invitations():
    return Invitations("hv-a")


def request_of(token, joiner):
    known = (token.id, "hv-b", URL_B)
    proof = invitation.proof(token.secret, token.fingerprint, joiner.fingerprint, known)
    return JoinRequest(
        invitation=token.id, name="hv-b", url=URL_B, certificate=joiner.pem, proof=proof
    )


def test_a_token_reads_as_it_was_written_and_says_no_secret_by_accident(invitations):
    token = invitations.make(URL, INVITER, 60)
    assert invitation.read(f" {str(token)[:50]}\n{str(token)[50:]} ") == token
    assert token.secret.hex() not in repr(token)


@pytest.mark.parametrize("cut", [0, 8, 9, 100, -1])
def test_a_token_that_is_not_whole_is_refused_without_being_repeated(invitations, cut):
    text = str(invitations.make(URL, INVITER, 60))
    for bad in (text[:cut], text[:20] + "x" + text[21:], f"{text}AA", "sterna1.", "é" * 99):
        with pytest.raises(BadToken) as caught:
            invitation.read(bad)
        assert text[20:40] not in caught.value.message


def test_a_token_is_for_one_host_which_may_ask_again_until_it_has_confirmed(invitations, joiner):
    token = invitations.make(URL, INVITER, 60)
    asked = request_of(token, joiner)
    for _ in range(2):
        assert invitations.redeem(asked, joiner.fingerprint).name == "hv-b"
    assert invitations.is_open(joiner.fingerprint)
    invitations.confirm(joiner.fingerprint)
    assert not invitations.is_open(joiner.fingerprint)
    with pytest.raises(TokenRefused, match="has been used"):
        invitations.redeem(asked, joiner.fingerprint)


def test_why_a_token_is_refused_is_for_those_who_know_its_secret(invitations, joiner, monkeypatch):
    token = invitations.make(URL, INVITER, 60)
    asked = request_of(token, joiner)
    now = clock.monotonic()
    monkeypatch.setattr(clock, "monotonic", lambda: now + 61)
    with pytest.raises(TokenRefused, match="has expired"):
        invitations.redeem(asked, joiner.fingerprint)
    with pytest.raises(TokenRefused, match="does not know it"):  # another's certificate
        invitations.redeem(asked, INVITER)


def test_a_record_without_a_certificate_keeps_nobody_else_out(tmp_path, joiner):
    own = identity.ensure(tmp_path / "identity", "hv-a", "192.0.2.1")
    trust = Trust(tmp_path / "peers", own)
    good = PeerRecord(name="hv-b", url=URL_B, certificate=joiner.pem)
    bad = PeerRecord(name="hv-c", url=URL_B, certificate="nothing")
    for one in (good, bad):
        trust._store.write_now(one.name, one)
    trust = Trust(tmp_path / "peers", own)
    assert trust.names == ["hv-b"]
    assert [one.key for one in trust.damaged] == ["hv-c"]
    assert trust.who(joiner.fingerprint).name == "hv-b"
    trust.listener()


def test_a_key_that_was_replaced_alone_gets_its_certificate_at_the_next_start(tmp_path):
    own = identity.ensure(tmp_path, "hv-a", "192.0.2.1")
    wanted = identity.prepare(own, "hv-a", "192.0.2.1").fingerprint
    assert identity.prepare(own, "hv-a", "192.0.2.1").fingerprint == wanted  # not another one
    own.next.key.rename(own.key)  # and here it died
    assert identity.ensure(tmp_path, "hv-a", "192.0.2.1").fingerprint == wanted
    assert not own.is_rotating
