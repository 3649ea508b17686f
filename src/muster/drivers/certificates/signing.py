"""Signing in a process of its own: the daemon stays small, and holds no key of the authority in memory (P1.5).

One job in JSON on standard input, one answer in JSON on standard output: `{"certificates": [PEM, ...], "key": PEM}` or
`{"error": TEXT}`. The process lives for one job. The authority's private key is named by its path; only the key of a
new authority goes through the pipe, once.
"""

import asyncio
import contextlib
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from msgspec import Struct

from muster.drivers.certificates.certificates import (
    CertificateRefused,
    Credentials,
    Subject,
    check_pair,
    create_authority,
    reissue,
    sign_request,
)
from muster.drivers.certificates.fields import NoCertificate, validity

TIMEOUT_S = 30.0


class SignRequest(Struct, frozen=True, tag="sign"):
    """Sign the request of a new node."""

    authority: str  # PEM certificate
    key_path: str
    subject: Subject
    request: str  # PEM
    lifetime_s: int


class Reissue(Struct, frozen=True, tag="reissue"):
    """Issue certificates anew for the keys that they have.

    Without `lifetime_s` each keeps its validity, as far as the authority's own reaches.
    """

    authority: str
    key_path: str
    certificates: tuple[tuple[Subject, str], ...]  # PEM
    lifetime_s: int | None = None


class NewAuthority(Struct, frozen=True, tag="authority"):
    """Make an authority."""

    cluster_name: str
    cluster_identity: str


class Answer(Struct, frozen=True):
    """What came of a job."""

    certificates: tuple[str, ...] = ()
    key: str = ""
    error: str = ""


Job = SignRequest | Reissue | NewAuthority


async def sign(job: Job) -> Answer:
    """Have a job done in a process of its own. Raises `CertificateRefused`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "muster.drivers.signing",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            output, _ = await process.communicate(msgspec.json.encode(job))
        answer = msgspec.json.decode(output, type=Answer)
    except TimeoutError as error:
        raise CertificateRefused(
            f"signing took more than {TIMEOUT_S:g} s: the machine is overloaded; try again"
        ) from error
    except msgspec.DecodeError as error:
        status = process.returncode
        raise CertificateRefused(f"signing failed: its process ended with {status}; see the log") from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if answer.error:
        raise CertificateRefused(answer.error)
    return answer


def carry_out(job: Job) -> Answer:
    """Do a job in this process. Raises `CertificateRefused`."""
    match job:
        case NewAuthority(cluster_name=name, cluster_identity=identity):
            made = create_authority(name, identity)
            return Answer((made.certificate_pem,), made.key_pem)
        case SignRequest():
            end = _end(job.authority, job.lifetime_s)
            return Answer((sign_request(_authority(job), job.subject, job.request, not_after=end),))
        case Reissue():
            authority = _authority(job)
            return Answer(tuple(_again(authority, job, subject, pem) for subject, pem in job.certificates))


def _again(authority: Credentials, job: Reissue, subject: Subject, pem: str) -> str:
    if job.lifetime_s is not None:
        return reissue(authority, subject, pem, not_after=_end(job.authority, job.lifetime_s))
    try:
        start, end = validity(pem)
    except NoCertificate as error:
        raise CertificateRefused(f"certificate of {subject.name}: {error}; enrol the node again") from error
    limit = validity(job.authority).not_after
    return reissue(authority, subject, pem, not_before=start, not_after=min(end, limit))


def _end(authority: str, lifetime_s: int) -> datetime:
    return min(datetime.now(UTC) + timedelta(seconds=lifetime_s), validity(authority).not_after)


def _authority(job: SignRequest | Reissue) -> Credentials:
    check_pair(job.authority, job.key_path)  # says what is wrong with the file
    return Credentials(job.authority, Path(job.key_path).read_text())


def main() -> None:
    """Entry point of the signing process."""
    try:
        answer = carry_out(msgspec.json.decode(sys.stdin.buffer.read(), type=Job))
    except (CertificateRefused, OSError) as error:
        answer = Answer(error=str(error))
    sys.stdout.buffer.write(msgspec.json.encode(answer))


if __name__ == "__main__":
    main()
