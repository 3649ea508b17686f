"""What `muster apply` warns of: words for a shell, other managers, children of a service on all nodes."""

import pytest

from muster.files.advice import advice
from muster.records.services import Definition


@pytest.mark.parametrize(
    ("command", "part"),
    [
        (("echo", "a", "&&", "echo"), "'&&'"),
        (("/usr/sbin/app", ">", "/var/log/app"), "'>'"),
        (("app", "--node", "$MUSTER_NODE"), "'$MUSTER_NODE'"),
        (("app", "`hostname`"), "'`hostname`'"),
        (("sh", "-c", "echo a && echo $X > b"), ""),
        (("/bin/bash", "-c", "a | b"), ""),
        (("find", "/srv", "-exec", "touch", "{}", ";"), ""),
        (("python3", "-c", "print('$A')"), ""),
        (("app", "--price", "5$", "a&b"), ""),
        (("systemctl", "start", "nginx"), "does not see it end, and does not end it"),
        (("/usr/bin/docker", "run", "-d", "nginx"), "Docker's daemon"),
        (("sh", "-c", "test -e /srv && exec systemctl start nginx"), "asks systemd by 'systemctl'"),
        (("sudo", "-n", "A=b", "/bin/systemctl", "start", "nginx"), "asks systemd by 'systemctl'"),
        (("sh", "-c", "echo systemctl; ls /usr/bin/docker"), ""),
        (("sh", "-c", "echo 'open"), ""),
        (("ip", "addr", "add", "10.0.0.9/24", "dev", "eth0"), "runs 'ip addr': what that leaves in the kernel stays"),
        (("sh", "-c", "if true; then /bin/mount /dev/sdb /srv; fi"), "name a cleanup_command"),
        (("ip", "addr", "show"), ""),
        (("sh", "-c", "cat /proc/mounts"), ""),
    ],
)
def test_a_command_that_means_something_else_than_it_says_is_a_warning(command: tuple[str, ...], part: str) -> None:
    found = advice([Definition("web", start_command=command)])
    assert len(found) == bool(part), found
    assert all(part in each and each.startswith("service 'web': start_command ") for each in found)


def test_a_child_of_a_service_on_all_nodes_is_told_to_be_on_each_node() -> None:
    everywhere, child = Definition("haproxy", on_all=True), Definition("vip", parent="haproxy")
    grandchild = Definition("check", parent="vip")
    first, second = advice([everywhere, child, grandchild])
    assert "'vip' will run on each node" in first
    assert "'check' will run on each node" in second
    assert advice([child], {"haproxy": everywhere}) == [first], "the parent may be defined in the cluster already"
    assert advice([Definition("db"), Definition("app", parent="db")]) == []
    assert advice([Definition("a", parent="b"), Definition("b", parent="a")]) == [], "a circle is another's to refuse"


def test_what_stays_in_the_kernel_is_no_warning_where_a_cleanup_takes_it_away() -> None:
    command = ("ip", "addr", "add", "10.0.0.9/24", "dev", "eth0")
    assert (
        advice([Definition("vip", start_command=command, cleanup_command=("ip", "addr", "del", "10.0.0.9/24"))]) == []
    )


@pytest.mark.parametrize(
    ("definition", "part"),
    [
        (Definition("web", run=("/usr/sbin/nginx", "-g", "daemon off;")), 'stop_signal = "SIGQUIT"'),
        (
            Definition("db", run=("sh", "-c", "exec /usr/lib/postgresql/*/bin/postgres -D /srv")),
            'stop_signal = "SIGINT"',
        ),
        (Definition("web", run=("nginx",), stop_signal="SIGQUIT"), ""),
        (Definition("web", run=("nginx",), stop_command=("nginx", "-s", "quit")), ""),
        (Definition("web", run=("app",), stop_command=("echo", "stopping")), "stop_command does not end its program"),
        (Definition("web", run=("app",), stop_command=("sh", "-c", "echo stopping; true")), "has all of stop_timeout"),
        (Definition("web", run=("app",), stop_command=("sh", "-c", "echo stopping; pkill app")), ""),
        (Definition("web", start_command=("app",), stop_command=("true",)), ""),
    ],
)
def test_a_stop_that_loses_something_or_lasts_for_nothing_is_a_warning(definition: Definition, part: str) -> None:
    found = advice([definition])
    assert len(found) == bool(part), found
    assert all(part in each for each in found)


def test_two_services_with_one_port_are_told_where_they_may_meet() -> None:
    one = Definition("a", run=("app",), ready_port=80)
    for other, meet in (
        (Definition("b", run=("app",), ready_port=80), True),
        (Definition("b", run=("app",), ready_port=81), False),
        (Definition("b", run=("app",), ready_port=80, allowable_nodes=("n1",)), True),
        (Definition("b", run=("app",), ready_port=80, parent="c"), False),
    ):
        assert bool(advice([one, other])) == meet, other
    here = Definition("a", run=("app",), ready_port=80, disallowable_nodes=("n1",))
    assert advice([here, Definition("b", run=("app",), ready_port=80, allowable_nodes=("n1",))]) == []
    child = Definition("d", run=("app",), ready_port=80, parent="c")
    assert advice([child, Definition("e", run=("app",), ready_port=80, parent="c")])
