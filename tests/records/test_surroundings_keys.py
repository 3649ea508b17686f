"""The keys of a service that say what its commands begin with (P8.19): read, bounded, gated by version."""

from typing import Any

import pytest

from muster.files.service_file import ServiceFileError, parse
from muster.records.service_limits import problem_of
from muster.records.services import Definition, version_of_definition
from muster.records.versions import LOWEST, OWNERS_KEYS

FILE = """
[[service]]
name = "web"
run = "server"
user = "www-data"
group = "adm"
working_directory = "/srv/web"
umask = "027"
limits = {nofile = 65536, core = "unlimited", nproc = "512:1024"}
environment_file = "/etc/default/web"
stop_signal = "SIGQUIT"
extend_limit = "5m"
output = "journal"
check = {command = "true", user = "root"}
"""


def test_p8_19_the_keys_are_read() -> None:
    (web,) = parse(FILE, "services.toml")
    assert (web.user, web.group, web.working_directory, web.umask) == ("www-data", "adm", "/srv/web", 0o027)
    assert web.limits == (("core", "unlimited"), ("nofile", "65536"), ("nproc", "512:1024"))
    assert (web.environment_file, web.stop_signal) == ("/etc/default/web", "SIGQUIT")
    assert (web.extend_limit_ms, web.output, web.check_user) == (300_000, "journal", "root")
    assert problem_of(web) == ""
    assert version_of_definition(web) == OWNERS_KEYS > version_of_definition(Definition("plain")) == LOWEST


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('user = ""', "user"),
        ('user = "two words"', "user is 'two words'"),
        ('working_directory = "srv"', "give a path from the root"),
        ('umask = "9"', "octal digits"),
        ("umask = 18", "octal digits"),
        ("limits = {colour = 5}", "unknown limit 'colour'"),
        ('limits = {nofile = "many"}', "a number"),
        ("limits = 5", "nofile"),
        ('environment_file = "web"', "give a path from the root"),
        ('stop_signal = "SIGNAL"', "SIGQUIT"),
        ('extend_limit = "2d"', "extend_limit"),
        ('output = "syslog"', "output"),
        ('check = {command = "true", user = "two words"}', "two words"),
    ],
)
def test_p8_19_a_wrong_value_is_named_with_what_is_allowed(line: str, part: str) -> None:
    with pytest.raises(ServiceFileError) as caught:
        parse(f'[[service]]\nname = "web"\nrun = "server"\n{line}\n', "services.toml")
    assert part in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"umask": 0o1000},
        {"user": "a\0b"},
        {"limits": (("cpu", "1"), ("cpu", "2"))},
        {"stop_signal": "SIGSTOP"},
        {"extend_limit_ms": -1},
        {"output": "syslog"},
        {"check_user": "a b"},
    ],
)
def test_p8_19_a_definition_that_comes_by_the_socket_is_judged_alike(wrong: dict[str, Any]) -> None:
    assert problem_of(Definition("web", run=("server",), **wrong))


@pytest.mark.parametrize("key", [{"extend_limit_ms": 5}, {"output": "journal"}, {"check_user": "root"}])
def test_p10_1_a_node_of_an_older_release_takes_none_of_the_new_keys(key: dict[str, Any]) -> None:
    assert version_of_definition(Definition("web", **key)) == OWNERS_KEYS
