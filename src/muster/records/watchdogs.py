"""The setting `watchdog` of a cluster or a node: which device stands behind its lease, and what is known of it (P7.34).

none                         no watchdog: an expired lease proves nothing between machines
auto                         the first one of the machine that is no software watchdog
softdog                      the kernel's software watchdog, which only its name chooses
/dev/watchdog1               this one
auto,trusted                 an operator says that clock and watchdog of this virtual machine never stop (P7.36)
auto,stages=2                it resets on its second expiry only
auto,kept                    it cannot be stopped (nowayout): a small feeder lives on after the node has left
"""

import re
from typing import NamedTuple

NONE, AUTO, SOFTDOG = "none", "auto", "softdog"
MAXIMUM_STAGES = 4
MAXIMUM_CHARACTERS = 120
_PATH = re.compile(r"/dev/[A-Za-z0-9_./-]{1,64}")
_FORM = "write none, auto, softdog or a path below /dev; then, with commas, trusted, kept or stages=N"


class WatchdogSetting(NamedTuple):
    """What `parse` has read. `stages`: 0 is what is known of the kind of device."""

    device: str
    trusted: bool = False
    kept: bool = False
    stages: int = 0


def parse(text: str) -> WatchdogSetting | None:
    """The setting; None for `none` or nothing. Raises `ValueError` in words."""
    words = [word.strip() for word in text.split(",")]
    device, options = words[0], words[1:]
    if len(text) > MAXIMUM_CHARACTERS:
        raise ValueError(f"it has more than {MAXIMUM_CHARACTERS} characters: {_FORM}")
    if device in ("", NONE) and not options:
        return None
    if device not in (AUTO, SOFTDOG) and (not _PATH.fullmatch(device) or ".." in device):
        raise ValueError(f"{device[:60]!r} names no watchdog: {_FORM}")
    setting = WatchdogSetting(device)
    for option in options:
        setting = _with(setting, option)
    return setting


def _with(setting: WatchdogSetting, option: str) -> WatchdogSetting:
    name, _equals, number = option.partition("=")
    if option == "trusted":
        return setting._replace(trusted=True)
    if option == "kept":
        return setting._replace(kept=True)
    if name == "stages" and number.isascii() and number.isdecimal() and 1 <= int(number[:3]) <= MAXIMUM_STAGES:
        return setting._replace(stages=int(number[:3]))
    raise ValueError(f"{option[:60]!r} says nothing of a watchdog: {_FORM}, of 1 to {MAXIMUM_STAGES}")


def text_of(setting: WatchdogSetting | None) -> str:
    """As `parse` reads it."""
    if setting is None:
        return NONE
    options = [word for word, said in (("trusted", setting.trusted), ("kept", setting.kept)) if said]
    stages = [f"stages={setting.stages}"] if setting.stages else []
    return ",".join((setting.device, *options, *stages))
