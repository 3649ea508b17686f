"""Services placed on all nodes: one instance a node, each a service of its own (P6.28, SPEC 6.2 `register_on_all`).

The service that an administrator defines is a template: it is never started itself, and shows what its instances are.
A child of a template is one too, with an instance beside each instance of its parent.
"""

from collections.abc import Collection

from msgspec.structs import replace

from muster.core.services.conditions import has_maturity, immaturity
from muster.core.services.placement import is_allowable
from muster.core.services.redefinition import redefined
from muster.core.services.round import Round
from muster.records.database import Database
from muster.records.services import Definition, Service, ServiceState

SEPARATOR = "@"  # in no name that an administrator may give


def is_template(service: Service) -> bool:
    """Whether the record stands for instances."""
    return service.definition.on_all and not service.template


def instances_of(template: Service, database: Database) -> list[Service]:
    """Its instances, as far as there are any."""
    names = (f"{template.name}{SEPARATOR}{config.name}" for config in database.nodes.values())
    return [database.services[name] for name in names if name in database.services]


def expand(round_: Round) -> None:
    """Make the instances of every template, let them follow it, and let it show what they are."""
    for service in list(round_.draft.services.values()):
        if round_.draft.is_full:
            return
        if is_template(service):
            _expand(service, round_)
        elif service.template:
            _follow(service, round_)


def _expand(template: Service, round_: Round) -> None:
    states = []
    for config in round_.draft.nodes.values():
        name = f"{template.name}{SEPARATOR}{config.name}"
        instance = round_.draft.services.get(name)
        if instance is None and not template.removed and is_allowable(template.definition, config.name):
            definition = _definition(template.definition, config.name, round_)
            instance = Service(definition, round_.draft.index, wanted=template.wanted, template=template.name)
            round_.put(instance, f"an instance for {config.name}")
        if instance is not None:
            states.append(instance.state)
    state = state_of_all(states)
    if state is not template.state:
        template = replace(template, state=state)
        round_.put(template, f"its instances are {state}")
    _follow_maturity(template, round_)


def _follow_maturity(template: Service, round_: Round) -> None:
    """Its instances wait together for the cluster's maturity, once: whoever joins later waits no more (P6.21)."""
    if not has_maturity(template.definition) or not template.wanted:
        return
    at_work = template.state is not ServiceState.DEREGISTERED
    if not template.matured and (at_work or not immaturity(template, round_)):
        round_.put(replace(template, matured=True, waits_since=0), "the cluster is mature for it")
    elif template.matured and not at_work and round_.place(template) is None:
        round_.put(replace(template, matured=False), "")


def state_of_all(states: Collection[ServiceState]) -> ServiceState:
    """What a template shows: the state of the instance that has got furthest."""
    order = (ServiceState.REGISTERED, ServiceState.STARTING, ServiceState.STOPPING, ServiceState.RECOVERING)
    return next((state for state in order if state in states), ServiceState.DEREGISTERED)


def _follow(instance: Service, round_: Round) -> None:
    """What is withdrawn, redefined or forbidden for a template is so for its instances."""
    template = round_.draft.services.get(instance.template)
    node_name = instance.name.rpartition(SEPARATOR)[2]
    configured = any(config.name == node_name for config in round_.draft.nodes.values())
    if template is None or template.removed or not is_template(template) or not configured:
        if not instance.removed:
            round_.put(replace(instance, removed=True, wanted=False), "is needed no more")
        return
    definition = _definition(template.definition, node_name, round_)
    if instance.definition != definition:
        round_.put(redefined(instance, definition, round_.draft), "redefined")


def _definition(definition: Definition, node_name: str, round_: Round) -> Definition:
    """The definition of an instance: as the template's, allowable on its node alone."""
    forbidden = () if is_allowable(definition, node_name) else (node_name,)
    parent = definition.parent
    if parent and (found := round_.draft.services.get(parent)) is not None and is_template(found):
        parent = f"{parent}{SEPARATOR}{node_name}"
    return replace(
        definition, name=f"{definition.name}{SEPARATOR}{node_name}", allowable_nodes=(node_name,),
        disallowable_nodes=forbidden, ordered=(), unordered=(), on_all=False, free_transfer=False, parent=parent,
        maturity_count=0, maturity_time_ms=0,
    )  # fmt: skip
