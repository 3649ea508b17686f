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
        (("systemctl", "start", "nginx"), "neither sees it end nor ends it"),
        (("/usr/bin/docker", "run", "-d", "nginx"), "Docker's daemon"),
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
