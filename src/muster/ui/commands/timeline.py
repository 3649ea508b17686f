"""`muster timeline`: what happened in a transition, on all nodes, in one account (SPEC 8.2, 9.4)."""

import time

import click

from muster.client.errors import ClientError
from muster.setup.errors import Mistaken
from muster.ui.options import connection_options, json_option, print_json, reporting, settings


@click.command()
@click.argument("transition", metavar="[ID]", type=click.IntRange(min=1), required=False)
@click.option("--last", is_flag=True, help="The newest transition.")
@json_option
@connection_options
@reporting
def timeline(transition: int | None, last: bool, as_json: bool) -> None:
    """The recent transitions; or with ID all that happened in that one, on every node, in one account.

    The nodes' records are merged in the order of cause. An entry is committed, the nodes are told by it, and they
    acknowledge; then the next entry is committed. TIME is in milliseconds since the transition opened, on the clock of
    the master that opened it. Records are kept in memory, of some hundred transitions. Those of a node that has ended
    are gone with it; what a master heard from it stands in their place.

    \b
    Examples:
      muster timeline --dir /tmp/try                     which transitions there were
      muster timeline --last --dir /tmp/try              the newest, in full
      muster timeline 705 --json | jq '.steps[] | {level, barrier, took_ms, waited_for}'

    \b
    With --json, the list has `history`, newest first: {id, node, kind, age_ms, took_ms, outcome, cause}. An account has
      transition   the same, with opened_by, term, index, proof, replaces, replaced_by
      steps        [{level, level_name, barrier, participants, began_ms, took_ms, waited_for, waited_ms, missing}]
      account      [{time_ms, index, node, event, level, barrier, detail, after_ms, recorded_by}]
      omitted      events that a node's record had no room for
    and both have `unanswered`: [{node, why}], the nodes whose records are not in it. A time that nobody knows is null.
    """
    connection = settings().connection()
    if last and transition is not None:
        raise Mistaken("both an ID and --last are given", "muster timeline", "give one of them")
    if last:
        known = connection.query("transition_history")
        if not known["history"]:
            where, next_step = (
                f"cluster {known['cluster']}",
                "they are kept until a node ends; see `muster transitions`",
            )
            raise ClientError("no node that answers has a record of any transition", where, next_step)
        transition = known["history"][0]["id"]
    arguments = {} if transition is None else {"id": transition}
    answer = connection.query("transition_history", **arguments)
    if as_json:
        print_json(answer)
        return
    from muster.ui.pages.screen import console
    from muster.ui.pages.timeline_page import account_page, overview_page

    page = overview_page if transition is None else account_page
    console().print(page(answer, time.time()))
