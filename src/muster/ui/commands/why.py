"""`muster why`: each rule's verdict on where a service is, or why it is not running, now and in the past (SPEC 8.2)."""

import click

from muster.client.errors import ClientError
from muster.setup.errors import Mistaken
from muster.setup.nodes import Document
from muster.ui.options import (
    complete_nodes,
    complete_services,
    connection_options,
    json_option,
    print_json,
    reporting,
    settings,
)


@click.command()
@click.argument("name", metavar="[SERVICE|NODE]", required=False, default="", shell_complete=complete_services)
@click.argument("target", metavar="[NODE]", required=False, default="", shell_complete=complete_nodes)
@click.option("--past", is_flag=True, help="Show the recent decisions about where it goes.")
@click.option("--at", type=click.IntRange(min=1), metavar="INDEX", help="Show the decision in force at this index.")
@json_option
@connection_options
@reporting
def why(name: str, target: str, past: bool, at: int | None, as_json: bool) -> None:
    """Why SERVICE is where it is, or does not run; the verdict of each rule, for each node or for NODE alone.

    With a node in place of SERVICE: whether it is a member, why, what it holds, what to do.
    Without a name: what is wrong with the cluster, all that needs you, each with the next command.
    A service that is called as a node is meant first: node/NAME is the node.

    What holds now is the master's word. A decision of the past is shown as it was made, with what was known then; it is
    kept in the memory of the node that made it as master, until that node ends.

    \b
    Examples:
      muster why web                    why it is there, where it would go now, what to do if it is not running
      muster why web n2                 what is said for and against n2
      muster why                        what is wrong with the cluster, if anything is
      muster why n2                     what ails n2, what it holds, and what to do about it
      muster why web --past             the recent decisions, newest first
      muster why web --at 118           the decision in force when entry 118 was committed

    \b
    With --json:
      summary, next_step    in words; next_step is empty where nothing is needed
      service               {name, state, node, wanted, cause}
      rules                 [{rule, holds, words}] about the service as a whole
      nodes                 [{node, rule, possible, chosen, words}] if it were placed now, best first
      decision              what put it where it is: {index, term, age_ms, node, state, cause, nodes}, or null
      past                  the recent decisions, newest first, as `decision`; node is null where none was left
      answered_by           whose word that is; is_master: whether it is the master's; as_of: its commit index
      unanswered            [{node, why}] whose memory of the past is not in it
      needs                 what needs a person about it, as in `muster status --json`
    Of a node or the cluster: summary, next_step, needs, rules, subject {kind, name, state, condition},
    services [{service, words}].
    """
    if not name and (past or at is not None):
        raise Mistaken("no service is named", "muster why", "name the one whose past decisions you want to see")
    if past and at is not None:
        raise Mistaken("both --past and --at are given", "muster why", "give one of them")
    arguments: dict[str, str | int] = {"service": name, "node": target}
    if at is not None:
        arguments["at"] = at
    answer = settings().connection().query("why", **arguments)
    if at is not None and "subject" not in answer and not answer["past"]:
        raise _not_recorded(answer, at)
    if as_json:
        print_json(answer)
        return
    from muster.ui.pages.screen import console
    from muster.ui.pages.why_page import decision_page, node_page, past_page, present_page

    if "subject" in answer:
        console().print(node_page(answer))
        return
    if at is not None:
        page = decision_page(answer, answer["past"][0])
    else:
        page = past_page(answer) if past else present_page(answer, whole=not target)
    console().print(page)


def _not_recorded(answer: Document, at: int) -> ClientError:
    name = answer["service"]["name"]
    next_step = f"see what is known: muster why {name} --past"
    if missing := ", ".join(f"{each['node']}: {each['why']}" for each in answer["unanswered"]):
        next_step += f"; not everybody was heard ({missing})"
    what = f"no node that answers has a record of a decision about {name} up to entry {at}"
    return ClientError(what, f"cluster {answer['cluster']}", next_step)
