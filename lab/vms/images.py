"""What the machines boot: Debian's own kernel, a Debian root with Muster's package installed, a small first root.

Two steps. The *base* is Debian alone, made by mmdebstrap from the package registry; it is kept below build/ under a
name that its recipe decides, so it is fetched once and needs no network afterwards. The *root* is a copy of it with the
package of `make dist` installed, made once a run as an image that all machines read; what each of them writes goes into
a layer of its own.

The stock kernel brings disks, network and ext4 as modules, so a first root (busybox, from that very Debian) loads them.
"""

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

Tell = Callable[[str], None]

SUITE = "bookworm"
PACKAGES = (
    "busybox-static", "gfs2-utils", "iproute2", "kmod", "libdlm3", "procps", "python3", "qemu-guest-agent",
    "systemd-sysv", "udev",
)  # fmt: skip
_KERNEL = "linux-image-amd64"
_FOLDERS = (
    "drivers/block", "drivers/char/hw_random", "drivers/char/virtio_console.ko", "drivers/md", "drivers/scsi",
    "drivers/net/net_failover.ko", "drivers/net/virtio_net.ko", "drivers/target", "drivers/virtio", "drivers/watchdog",
    "arch/x86/crypto", "block", "crypto", "fs/configfs", "fs/dlm", "fs/ext4", "fs/fuse", "fs/gfs2", "fs/jbd2",
    "fs/mbcache.ko", "lib", "net/core", "net/sctp",
)  # fmt: skip
_FIRST_MODULES = ("virtio_pci", "virtio_blk", "ext4", "virtio_net", "virtio_console", "crc32c_generic")
_MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "fstrim.timer", "getty@tty1.service", "kmod-static-nodes.service", "serial-getty@ttyS0.service",
    "systemd-logind.service", "systemd-pstore.service", "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service", "systemd-binfmt.service",
    "console-getty.service", "dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-tracing.mount",
)  # fmt: skip
_SPARE_MIB = 400

_NETWORK_UNIT = """\
[Unit]
Description=Addresses of this machine in the laboratory
Before=network.target network-online.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/lab-network
[Install]
WantedBy=multi-user.target
"""
_NETWORK = """\
#!/bin/sh
# the kernel's command line says which machine this is
for word in $(cat /proc/cmdline); do
    case $word in lab.number=*) number=${word#lab.number=} ;; esac
done
ip address add "10.77.0.$number/24" dev eth0
ip address add "10.78.0.$number/24" dev eth1
ip link set eth0 up
ip link set eth1 up
"""
_INIT = """\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module"; done </order
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 200 ]; do sleep 0.05; tries=$((tries + 1)); done
mount -t ext4 -o rw /dev/vda /root || exec sh
mount --move /proc /root/proc
mount --move /sys /root/sys
mount --move /dev /root/dev
exec switch_root /root /sbin/init
"""
_APPLETS = ("insmod", "mount", "sh", "sleep", "switch_root")


class Images(NamedTuple):
    """What a machine is started with."""

    kernel: Path
    first_root: Path
    root: Path


def make_base(folder: Path, tell: Tell) -> Path:
    """The Debian root and its kernel, made if there is none by this recipe. Raises `OSError`."""
    recipe = repr(
        (SUITE, PACKAGES, _KERNEL, _FOLDERS, _FIRST_MODULES, _MASKED, _NETWORK_UNIT, _NETWORK, _INIT, _APPLETS)
    )
    base = folder / f"base-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if base.exists():
        tell(f"base: {base.name}, made before")
        return base
    growing = folder / f"{base.name}.new"
    shutil.rmtree(growing, ignore_errors=True)
    growing.mkdir(parents=True)
    try:
        tell(f"base: a root of Debian {SUITE} by mmdebstrap ...")
        _debootstrap(growing / "root")
        tell("base: the kernel and its modules ...")
        version = _take_kernel(growing)
        _settle(growing / "root")
        _make_first_root(growing, version)
    except BaseException:
        shutil.rmtree(growing, ignore_errors=True)
        raise
    growing.rename(base)
    return base


def make_root(base: Path, package: Path, files: dict[str, str], scratch: Path, tell: Tell) -> Images:
    """The image of the root with the package installed, and these programs in it. Raises `OSError`."""
    tell(f"root: {package.name} is installed, the image made ...")
    root = scratch / "root"
    run("cp", "--archive", "--reflink=auto", str(base / "root"), str(root))
    shutil.copy(package, root / "root" / "package.deb")
    run("chroot", str(root), "/usr/bin/env", "-i", *_PLAIN, "dpkg", "--install", "/root/package.deb")
    (root / "root" / "package.deb").unlink()
    for path, text in files.items():
        _put(root / path.lstrip("/"), text, 0o755)
    image = scratch / "root.img"
    size_mib = _size_mib(root) + _SPARE_MIB
    run("mke2fs", "-q", "-t", "ext4", "-d", str(root), str(image), f"{size_mib}M")
    shutil.rmtree(root)
    return Images(base / "vmlinuz", base / "first.img", image)


_PLAIN = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")


def run(*words: str, data: bytes | None = None) -> bytes:
    """What a tool prints. Raises `OSError` with what it says."""
    done = subprocess.run(words, input=data, capture_output=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise OSError(f"{' '.join(words)[:200]}: {said[-1500:]}")
    return done.stdout


def _debootstrap(root: Path) -> None:
    """In namespaces of its own: whatever ends it, its mounts go with it."""
    fetch = (
        'chroot "$1" sh -c \'cd /root && apt-get download $(apt-cache depends '
        + _KERNEL
        + ' | sed -n "s/.*Depends: //p" | head -n 1)\''
    )
    run(
        "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
        "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}",
        "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=path-exclude=/usr/share/man/*", f"--customize-hook={fetch}", SUITE, str(root),
    )  # fmt: skip


def _take_kernel(base: Path) -> str:
    """The kernel, and those of its modules that a guest can use, out of its package; its version."""
    (package,) = (base / "root/root").glob("linux-image-*.deb")
    unpacked = base / "kernel"
    run("dpkg-deb", "--extract", str(package), str(unpacked))
    package.unlink()
    (modules,) = (unpacked / "lib/modules").iterdir()
    version = modules.name
    shutil.copy(unpacked / "boot" / f"vmlinuz-{version}", base / "vmlinuz")
    target = base / "root/lib/modules" / version
    target.mkdir(parents=True)
    for file in modules.glob("modules.*"):
        shutil.copy(file, target)
    for name in _FOLDERS:
        source = modules / "kernel" / name
        if source.is_dir():
            shutil.copytree(source, target / "kernel" / name)
        elif source.exists():
            (target / "kernel" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target / "kernel" / name)
    run("chroot", str(base / "root"), "depmod", version)
    shutil.rmtree(unpacked)
    return version


def _settle(root: Path) -> None:
    """Files of a machine that boots quickly, by itself."""
    _put(root / "etc/systemd/system/lab-network.service", _NETWORK_UNIT, 0o644)
    _put(root / "usr/local/sbin/lab-network", _NETWORK, 0o755)
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    (wants / "lab-network.service").symlink_to("/etc/systemd/system/lab-network.service")
    for unit in _MASKED:
        link = root / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    (root / "etc/fstab").write_text("")
    (root / "etc/machine-id").write_text("")
    (root / "etc/hostname").unlink(missing_ok=True)
    for kept in ("var/lib/apt/lists", "var/cache/apt"):
        shutil.rmtree(root / kept, ignore_errors=True)


def _make_first_root(base: Path, version: str) -> None:
    """The first root: busybox, the modules that the second is reached with, and what loads them in their order."""
    first = base / "first"
    for name in ("bin", "dev", "modules", "proc", "root", "sys"):
        (first / name).mkdir(parents=True)
    shutil.copy(base / "root/bin/busybox", first / "bin/busybox")
    for applet in _APPLETS:
        (first / "bin" / applet).symlink_to("busybox")
    order: list[str] = []
    for module in _FIRST_MODULES:
        said = run("chroot", str(base / "root"), "modprobe", "-S", version, "--show-depends", module).decode()
        for line in said.splitlines():
            if line.startswith("insmod ") and (path := line.split()[1]) not in order:
                order.append(path)
                shutil.copy(base / "root" / path.lstrip("/"), first / "modules")
    (first / "order").write_text("".join(f"{Path(path).name}\n" for path in order))
    _put(first / "init", _INIT, 0o755)
    names = "".join(f"{each.relative_to(first)}\n" for each in sorted(first.rglob("*")))
    packed = subprocess.run(
        [str(base / "root/bin/busybox"), "cpio", "-o", "-H", "newc"],
        input=names.encode(), capture_output=True, check=True, cwd=first,
    ).stdout  # fmt: skip
    (base / "first.img").write_bytes(packed)
    shutil.rmtree(first)


def _put(path: Path, text: str, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _size_mib(root: Path) -> int:
    return int(run("du", "--summarize", "--block-size=1M", str(root)).split()[0])
