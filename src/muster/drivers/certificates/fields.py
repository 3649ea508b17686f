"""What a daemon must know of a certificate beyond what `ssl` tells it: its public key and its validity (P1.1).

The package that makes certificates costs more memory than the rest of the daemon together, so the few fields are read
here. A certificate comes from the database or has been verified by TLS: what is read here is never trusted because of
its form.
"""

import hashlib
import ssl
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18
_LONG_LENGTH = 0x80
_PIVOT_YEAR = 50  # of two digits: RFC 5280, 4.1.2.5.1


class NoCertificate(ValueError):
    """The bytes are no certificate."""


_REMEMBERED = 64  # certificates; each is asked about again with every change of the record


class Validity(NamedTuple):
    """From when to when a certificate is good; aware times in UTC."""

    not_before: datetime
    not_after: datetime


class _Fields(NamedTuple):
    """The parts of a certificate's inner sequence (RFC 5280, 4.1) that are of use, as whole DER values."""

    validity: bytes
    public_key: bytes


@lru_cache(_REMEMBERED)
def key_pin(certificate: bytes | str) -> str:
    """SHA-256 of a certificate's public key with its kind, in hexadecimal. DER or PEM. Raises `NoCertificate`."""
    return hashlib.sha256(_fields(certificate).public_key).hexdigest()


@lru_cache(_REMEMBERED)
def validity(certificate: bytes | str) -> Validity:
    """When a certificate is good. DER or PEM. Raises `NoCertificate`."""
    times = _values(_content(_fields(certificate).validity))
    if len(times) != 2:
        raise NoCertificate("its validity is not a pair of times")
    return Validity(_time(times[0]), _time(times[1]))


def split(pem: str) -> list[str]:
    """The certificates of a text that may hold several, each as a PEM text of its own."""
    end = "-----END CERTIFICATE-----"
    return [part.lstrip("\n") + end + "\n" for part in pem.split(end) if "-----BEGIN CERTIFICATE-----" in part]


def _fields(certificate: bytes | str) -> _Fields:
    if isinstance(certificate, str):
        try:
            certificate = ssl.PEM_cert_to_DER_cert(certificate)
        except ValueError as error:
            raise NoCertificate(f"this is no PEM certificate ({error})") from error
    outer = _values(certificate)
    parts = _values(_content(_values(_content(outer[0]))[0])) if outer else []
    if parts and parts[0][0] == _VERSION:
        parts = parts[1:]
    if len(parts) < 6:  # serial number, algorithm, issuer, validity, subject, public key
        raise NoCertificate("it ends before its public key")
    return _Fields(parts[3], parts[5])


def _values(data: bytes) -> list[bytes]:
    """The DER values that follow each other in `data`, each with its head."""
    found, position = [], 0
    while position < len(data):
        head, length = _head(data, position)
        end = position + head + length
        if end > len(data):
            raise NoCertificate("a part of it is longer than the whole")
        found.append(data[position:end])
        position = end
    return found


def _content(value: bytes) -> bytes:
    if value[0] != _SEQUENCE:
        raise NoCertificate(f"a sequence is expected where kind {value[0]:#x} is")
    return value[_head(value, 0)[0] :]


def _head(data: bytes, position: int) -> tuple[int, int]:
    """Bytes of the head of the value at `position`, and of its content."""
    if position + 2 > len(data):
        raise NoCertificate("it is cut short")
    first = data[position + 1]
    if first < _LONG_LENGTH:
        return 2, first
    count = first - _LONG_LENGTH
    if not 0 < count <= 4 or position + 2 + count > len(data):
        raise NoCertificate("a length in it is not understood")
    return 2 + count, int.from_bytes(data[position + 2 : position + 2 + count], "big")


def _time(value: bytes) -> datetime:
    head, _ = _head(value, 0)
    text = value[head:].decode("ascii", "replace")
    try:
        if value[0] == _UTC_TIME:
            year = int(text[:2])
            century = "20" if year < _PIVOT_YEAR else "19"
            return datetime.strptime(century + text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
        if value[0] == _GENERALIZED_TIME:
            return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
    except ValueError as error:
        raise NoCertificate(f"{text!r} is no time") from error
    raise NoCertificate(f"a time is expected where kind {value[0]:#x} is")
