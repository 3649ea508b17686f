"""The root of a stock Debian system, made once by mmdebstrap; every machine has a layer of its own over it.

It holds what a small server has: systemd, Python, OpenSSH, iproute2. Muster is not in it: each machine installs the
package. What is made here depends on the list of packages and the release only, so another run takes it as it is.
"""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

PACKAGES = ("systemd", "systemd-sysv", "python3", "iproute2", "openssh-server", "openssh-client", "procps")
_RECIPE = "2"  # another number makes the root anew
_MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer",
    "systemd-tmpfiles-clean.timer", "console-getty.service", "getty@.service", "systemd-networkd.service",
    "systemd-networkd-wait-online.service", "systemd-resolved.service", "systemd-timesyncd.service",
)  # fmt: skip


def suite() -> str:
    """The name of this machine's Debian release. Raises `OSError`, `KeyError` where it is no such system."""
    lines = Path("/etc/os-release").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)["VERSION_CODENAME"].strip('"')


def base_root(folder: Path) -> tuple[Path, bool]:
    """The root, below `folder`, and whether it was made now. Needs the network. Raises `OSError`."""
    release = suite()
    key = hashlib.sha256("\n".join((release, _RECIPE, *PACKAGES)).encode()).hexdigest()[:12]
    root = folder / f"root-{release}-{key}"
    if root.is_dir():
        return root, False
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{root.name}.{os.getpid()}"
    words = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}", release, str(draft)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"mmdebstrap failed: {done.stderr.strip()[-500:]}")
        _settle(draft)
        draft.rename(root)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return root, True


def _settle(root: Path) -> None:
    """What an administrator has set on such machines: one can go to another by ssh, nothing runs by the clock."""
    for unit in _MASKED:
        (root / "etc/systemd/system" / unit).symlink_to("/dev/null")
    (root / "etc/machine-id").write_text("")
    (root / "etc/systemd/journald.conf.d").mkdir(exist_ok=True)
    (root / "etc/systemd/journald.conf.d/lab.conf").write_text("[Journal]\nStorage=volatile\nRateLimitBurst=0\n")
    keys = root / "root/.ssh"
    keys.mkdir(mode=0o700, exist_ok=True)
    words = ["chroot", str(root), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/.ssh/id_ed25519"]
    subprocess.run(words, check=True)
    shutil.copy(keys / "id_ed25519.pub", keys / "authorized_keys")
    settings = "Host *\n    StrictHostKeyChecking accept-new\n    BatchMode yes\n    LogLevel ERROR\n"
    (root / "etc/ssh/ssh_config.d/lab.conf").write_text(settings)
