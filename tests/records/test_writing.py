"""What is exported is a file that `muster apply` takes, and reads as what it was made of (SPEC 9.3)."""

import msgspec
import pytest
from test_service_file import WHOLE

from muster.client.errors import ClientError
from muster.files.event_file import parse_groups
from muster.files.service_file import parse
from muster.files.writing import text_of
from muster.records.services import Definition
from muster.setup.exporting import export_of

EVENTS = """
[[event_group]]
name = "disk"
nodes = ["n0", "n1"]
windows = ["mon-fri 22:00-06:00"]

[[event_group.event]]
name = "disk-full"
watcher = "check"
in = {command = "/usr/local/bin/disk_ok /srv", interval = "30s", failures = 2, of = 3}
action = ["/usr/local/bin/page", "{out.output}"]
debounce = "10m"
rate = "3/1h"
timeout = "5s"
"""
MORE = """
[[service]]
name = "every-other-key"
placement_policy = "register_on_all"
run = ["/bin/x", "tab\\tquote\\"back\\\\slash\\u007f\\u0001é"]
forking = false
user = "web"
umask = "027"
limits = {nofile = 65536, core = "unlimited"}
success_exit_status = [3, 4]
stop_signal = "SIGQUIT"
extend_limit = "0s"
output = "journal"
ready = {notify = true}
check = {command = ["a b", "c"], success_exit_status = [1], user = "root"}
environment = {"A_B" = "x"}
"""


def test_what_is_exported_reads_as_what_it_was_made_of() -> None:
    services = parse(WHOLE + MORE, "file")
    groups, problems = parse_groups(EVENTS, "file")
    assert groups and not problems
    text = text_of(services, groups)
    assert parse(text, "export") == services
    assert parse_groups(text, "export") == (groups, [])
    assert 'user = "web"' in text and "start_retries = 0" not in text


def test_an_export_has_the_commands_for_what_no_such_file_holds() -> None:
    shown = {
        "version": 7, "settings": {"groups": {"operator": "wheel", "observer": ""}, "lockspaces": "a,b"},
        "services": {"web": msgspec.to_builtins(Definition("web", run=("x",)))}, "event_groups": {},
    }  # fmt: skip
    device = {
        "agent": "fence_x",
        "parameters": {"ip": "1"},
        "secrets": ["password"],
        "from": ["n0"],
        "timeout_ms": 30000,
    }
    method = {"name": "power", "action": "off", "devices": [{"device": "b", "parameters": {"plug": "3", "x": "y z"}}]}
    fencing = {"devices": {"b": device}, "nodes": {"n1": {"methods": [method]}}}
    found = export_of(shown, fencing)
    assert found.commands == (
        "muster config set operator_group wheel",
        "muster config set lockspaces a,b",
        "muster fence add b --agent fence_x ip=1 --secret password --from n0 --limit 30",
        "muster fence method n1 power --device 'b:plug=3,x=y z' --action off",
    )
    assert parse(found.whole, "export") == (Definition("web", run=("x",)),)


def test_a_configuration_of_another_release_is_refused_and_not_half_written() -> None:
    shown = {"version": 1, "settings": {}, "services": {"x": {"name": "x", "new_key": 1}}, "event_groups": {}}
    with pytest.raises(ClientError, match="new_key"):
        export_of(shown, {})
