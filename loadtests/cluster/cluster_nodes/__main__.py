"""Workers on a Ray cluster of three nodes, each a host of its own: what happens when a host or a link goes?

Network namespaces stand for the hosts: Redis, the Ray head, two worker nodes with a real engine of the demo
model each, and a gateway. Clients stream long answers without a pause.

1. Node A computes a long prompt; node B is asked the same, and must find it in Redis.
2. Node B's link goes down and up again.
3. All processes of the head are killed, and the head is started again. Then a worker's process is killed.
4. Node B is told to stop.
5. Command lines and all that Ray keeps are searched for the secrets.

All hosts share two cores and one kernel. So the times of starts are longer than on hosts of their own, and
nothing is said of a network that loses or delays packets. It needs root and iproute2, and takes three minutes
with --quick, since engines start three times.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from loadtests.cluster.cluster_nodes.rig import Cluster, NotInTime
from loadtests.cluster.cluster_nodes.trials import (
    CutOff,
    Drained,
    HeadLost,
    SharedPrefix,
    cut_off,
    drained,
    head_lost,
    secrets_shown,
    shared_prefix,
)
from loadtests.cluster.hosts import HostsError, network
from loadtests.harness.figures import Bar, finish, parser, print_table, report

NETWORK, NUMBER = "nd", 83
# Longer than a gateway takes to give up a silent worker's streams, 12 s; and longer than Ray takes to give up
# a node, a minute.
CUT_S, QUICK_CUT_S = 80.0, 16.0
AWAY_S, QUICK_AWAY_S = 30.0, 6.0
LEASE_S = 3.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = parser("cluster_nodes", __doc__)
    options.add_argument("--keep", action="store_true", help="keep the logs, and say where they are")
    chosen = options.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="memserve-nd-"))
    try:
        with network(NETWORK, NUMBER) as hosts:
            return measure(Cluster(hosts, folder), quick=chosen.quick, as_json=chosen.json)
    except HostsError as error:
        print(error, file=sys.stderr)
        return 1
    except NotInTime as error:
        print(error, file=sys.stderr)
        chosen.keep = True
        return 1
    finally:
        if not chosen.keep:
            shutil.rmtree(folder, ignore_errors=True)


def measure(cluster: Cluster, *, quick: bool, as_json: bool) -> int:
    """Returns the exit status. Raises NotInTime."""
    started_s = time.monotonic()
    cluster.start()
    cluster.until("the head is ready", lambda: cluster.ready(cluster.head))
    for name, host in cluster.nodes.items():
        cluster.until(f"node {name} is ready", partial(cluster.ready, host))
    cluster.until_serving()
    ready_s = time.monotonic() - started_s
    prefix = shared_prefix(cluster)
    cut = cut_off(cluster, QUICK_CUT_S if quick else CUT_S)
    head = head_lost(cluster, QUICK_AWAY_S if quick else AWAY_S)
    secrets = secrets_shown(cluster)
    drain = drained(cluster)
    print_table(("", ""), _rows(ready_s, prefix, cut, head, drain, secrets))
    for failure in (*cut.other_failures, *head.failures, *drain.failures)[:20]:
        report(f"failed without need: {failure}")
    figures: dict[str, object] = {
        "ready_s": ready_s,
        "prefix": asdict(prefix),
        "cut_off": asdict(cut),
        "head_lost": asdict(head),
        "drained": asdict(drain),
        "secrets": secrets,
    }
    return finish(_bars(prefix, cut, head, drain, secrets), figures, as_json)


def _rows(
    ready_s: float, prefix: SharedPrefix, cut: CutOff, head: HeadLost, drain: Drained, secrets: dict[str, int]
) -> list[tuple[str, str]]:
    return [
        ("all ready after, s", f"{ready_s:.1f}"),
        ("prompt of node A on node B: tokens from Redis", f"{prefix.redis_tokens} of {prefix.prompt_tokens}"),
        ("… and the answers", "equal" if prefix.equal else "DIFFERENT"),
        ("node B cut off: requests", str(cut.requests)),
        ("… its streams that ended UNAVAILABLE", str(cut.ended)),
        ("… other requests that failed", str(len(cut.other_failures))),
        ("… last of its streams ended after, s", f"{cut.streams_end_s:.1f}"),
        ("… chosen for the last time after, s", f"{cut.chosen_for_s:.1f}"),
        ("… chosen again after the link was up, s", f"{cut.back_s:.1f}"),
        ("… with the same engine", "yes" if cut.same_engine else "no"),
        ("head killed: requests", str(head.requests)),
        ("… that failed", str(len(head.failures))),
        ("… engines kept", str(head.engines_kept)),
        ("… application RUNNING after its start, s", f"{head.back_s:.1f}"),
        ("… then a worker killed: another after, s", f"{head.replaced_s:.1f}"),
        ("node B drained: requests", str(drain.requests)),
        ("… that failed", str(len(drain.failures))),
        ("… ended after, s", f"{drain.took_s:.1f}"),
        ("command lines with a secret", str(secrets["command lines"])),
        ("entries of Ray with a secret", f"{secrets['entries of Ray']} of {secrets['entries looked at']}"),
    ]


def _bars(
    prefix: SharedPrefix, cut: CutOff, head: HeadLost, drain: Drained, secrets: dict[str, int]
) -> list[Bar]:
    return [
        Bar("tokens from Redis on node B", prefix.redis_tokens, at_least=1),
        Bar("equal answers of A and B", float(prefix.equal), at_least=1),
        Bar("streams of node B that ended UNAVAILABLE", cut.ended, at_least=1),
        Bar("other requests that failed while node B was cut off", len(cut.other_failures), at_most=0),
        Bar("seconds that a node is chosen after it was cut off", cut.chosen_for_s, at_most=LEASE_S + 1),
        Bar("requests that failed while the head was away", len(head.failures), at_most=0),
        Bar("engines that the loss of the head left running", head.engines_kept, at_least=2),
        Bar("requests that failed while a node was drained", len(drain.failures), at_most=0),
        Bar("exit status of a drained node", drain.exit_status, at_most=0),
        Bar("command lines with a secret", secrets["command lines"], at_most=0),
        Bar("entries of Ray with a secret", secrets["entries of Ray"], at_most=0),
    ]


if __name__ == "__main__":
    sys.exit(main())
