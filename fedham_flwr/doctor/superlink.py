"""The way to a SuperLink: the node's key, certificates and clock, and whether it answers."""

from __future__ import annotations

import contextlib
import email.utils
import socket
import ssl
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fedham_flwr.core.errors import first_line
from fedham_flwr.doctor.findings import Finding, fault, note, ok

PATIENCE = 10.0
"""Seconds within which a SuperLink answers."""
AHEAD, BEHIND = 5.0, 300.0
"""Seconds by which a node's clock may be ahead of the SuperLink's, or behind; else it is refused without a reason."""
SOON = timedelta(days=30)
"""Before the end of a certificate, from when it is noted."""
CURVES = ("secp256r1", "secp384r1", "secp521r1")
"""Of keys that Flower takes."""


def findings(
    address: str | None, root: str | None = None, key: str | None = None, insecure: bool = False
) -> Iterator[Finding]:
    """What is to be said of keys, certificates and the SuperLink.

    Args:
        address: HOST:PORT; None to look at the files only.
        root: a file with the certificates of the SuperLink's authority.
        key: a file with the node's private key.
        insecure: without TLS.
    """
    if key is not None:
        yield from _key(Path(key).expanduser())
        if insecure:
            yield fault("superlink", "key", "a key is of no use without TLS", "", "leave out --insecure")
    good = True
    if root is not None:
        for finding in _certificates(Path(root).expanduser()):
            good = good and finding.state != "fault"
            yield finding
    if address is None:
        return
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        yield fault("superlink", "superlink", repr(address), "HOST:PORT")
        return
    if good:
        yield from _reach(host, int(port), root, insecure)


def _key(file: Path) -> Iterator[Finding]:
    """The private key: there, for nobody else to read, of the kind that Flower takes, and its public half."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    make = "deploy/node_keys.sh makes one"
    try:
        raw, mode = file.read_bytes(), stat.S_IMODE(file.stat().st_mode)
    except OSError as error:
        yield fault("superlink", "key", f"{file} cannot be read ({error.strerror})", "", make)
        return
    try:
        private = serialization.load_ssh_private_key(raw, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        yield fault("superlink", "key", f"{file} is no private key of OpenSSH's ({first_line(error)})", "", make)
        return
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.curve.name not in CURVES:
        kind = type(private).__name__.replace("PrivateKey", "").strip("_")
        yield fault("superlink", "key", f"{file} is a key of the kind {kind}", "ECDSA on P-384, as Flower takes", make)
        return
    told = f"{file}, ECDSA on {private.curve.name}, mode {mode:04o}"
    if mode & 0o077:
        yield fault("superlink", "key", told, "0600, for nobody else to read", f"chmod 600 {file}")
    else:
        yield ok("superlink", "key", told)
    public = file.with_name(file.name + ".pub")
    wanted = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    if not public.is_file():
        yield note("superlink", "public key", f"there is no {public}", "", f"ssh-keygen -y -f {file} > {public}")
    elif public.read_bytes().split()[:2] != wanted.split()[:2]:
        yield fault("superlink", "public key", f"{public} is not of this private key", "", "register the right one")
    else:
        yield ok(
            "superlink", "public key", f"{public} is of this private key; whether it is registered is not known here"
        )


def _certificates(file: Path) -> Iterator[Finding]:
    """The authority's certificates: there, and valid today."""
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificates(file.read_bytes())
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        yield fault("superlink", "root certificates", f"{file} cannot be read ({why})", "PEM, the authority's ca.crt")
        return
    for certificate in found:
        name = certificate.subject.rfc4514_string()
        yield _dated(
            "root certificates", f"{file}, {name}", certificate.not_valid_before_utc, certificate.not_valid_after_utc
        )


def _dated(what: str, told: str, begins: datetime, ends: datetime) -> Finding:
    now = datetime.now(UTC)
    told = f"{told}, from {begins:%Y-%m-%d} to {ends:%Y-%m-%d}"
    if now < begins:
        return fault("superlink", what, f"{told}, and today is {now:%Y-%m-%d}", "", "is the clock behind?")
    if now > ends:
        return fault("superlink", what, f"{told}, and today is {now:%Y-%m-%d}", "", "renew it, or is the clock ahead?")
    return (
        note("superlink", what, told, "", "it ends soon: renew it")
        if ends - now < SOON
        else ok("superlink", what, told)
    )


def _reach(host: str, port: int, root: str | None, insecure: bool) -> Iterator[Finding]:
    """Whether somebody listens, and, by TLS, who it is; and its clock, if it says it."""
    place = f"{host}:{port}"
    try:
        connection = socket.create_connection((host, port), timeout=PATIENCE)
    except OSError as error:
        known = not isinstance(error, socket.gaierror)
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        advice = "is it started, and does a firewall let this machine through?" if known else "is the name right?"
        yield fault("superlink", "reachable", f"{place}: {why}", f"an answer within {PATIENCE:g} s", advice)
        return
    with contextlib.closing(connection):
        yield ok("superlink", "reachable", place)
        if insecure:
            yield from _clock(connection, host, None)
            return
        try:
            context = ssl.create_default_context(cafile=str(Path(root).expanduser()) if root else None)
            with context.wrap_socket(connection, server_hostname=host) as secured:
                yield ok(
                    "superlink", "TLS", f"{secured.version()}, its certificate is of this authority and for {host}"
                )
                dates = secured.getpeercert() or {}
                moments = [datetime.fromtimestamp(ssl.cert_time_to_seconds(str(dates[key])), UTC)
                           for key in ("notBefore", "notAfter")]  # fmt: skip
                yield _dated("its certificate", place, *moments)
                yield from _clock(secured, host, dates)
        except ssl.SSLCertVerificationError as error:
            yield fault("superlink", "TLS", f"{place}: {error.verify_message}", "", _advice(error.verify_message, root))
        except (ssl.SSLError, OSError) as error:
            why = "no answer" if isinstance(error, TimeoutError) else getattr(error, "reason", None) or str(error)
            yield fault("superlink", "TLS", f"{place}: {why}", "a SuperLink with TLS", "without TLS it is --insecure")


def _advice(why: str, root: str | None) -> str:
    if "not yet valid" in why or "expired" in why:
        return "is the clock right? Else renew the certificate"
    if "mismatch" in why:
        return "name the SuperLink as its certificate does, or make one with this name"
    return (
        "give the authority's ca.crt by --root-certificates"
        if root is None
        else "is this the ca.crt of this SuperLink?"
    )


def _clock(connection: socket.socket, host: str, _dates: object) -> Iterator[Finding]:
    """The difference of the clocks, if the other side dates its answers."""
    unknown = "cannot be compared, since the SuperLink does not date its answers"
    try:
        connection.settimeout(PATIENCE)
        connection.sendall(f"HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = connection.recv(4096).decode("latin-1")
        dated = next(line for line in answer.split("\r\n") if line.lower().startswith("date:"))
        theirs = email.utils.parsedate_to_datetime(dated.partition(":")[2].strip()).timestamp()
    except (OSError, ValueError, TypeError, StopIteration):
        yield note("superlink", "clock", unknown, "", "see that both keep time by NTP")
        return
    apart = time.time() - theirs - 0.5  # it is rounded down to seconds
    told = f"{abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} the SuperLink's"
    if apart > AHEAD or apart < -BEHIND:
        yield fault(
            "superlink", "clock", told, f"at most {AHEAD:g} s ahead and {BEHIND:g} s behind", "keep time by NTP"
        )
    else:
        yield ok("superlink", "clock", told)
