"""`python -m tests.parts.cluster CORES CORES ...`: a real Ray of so many nodes on this machine, a core count each.

Prints its address and that for `ray://` in one line of JSON; then each line of its input is done: `kill`: the last node
dies, `stop` or the end of the input: all do.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    os.environ["RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S"] = "120"  # not 30: of ray://, on a busy machine
    from ray.cluster_utils import Cluster

    from tests.parts.serving import free_port

    port = free_port()
    first, *others = [int(cores) for cores in sys.argv[1:]]
    cluster = Cluster(True, head_node_args={"num_cpus": first, "ray_client_server_port": port})
    nodes = [cluster.add_node(num_cpus=cores) for cores in others]
    print(json.dumps({"address": cluster.address, "client": f"ray://127.0.0.1:{port}"}), flush=True)
    for line in sys.stdin:
        if line.strip() != "kill":
            break
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        print("killed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
