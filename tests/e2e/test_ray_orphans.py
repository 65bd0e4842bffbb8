"""What a dead controller holds of a real Ray is freed; what the driver, a task or a live actor holds is not."""

import json
import subprocess
import sys

SCRIPT = """
import json, time
import ray
from ray.util.placement_group import placement_group, placement_group_table
from genrec.cluster.reservation import free_orphans

ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)

def reserve():
    group = placement_group([{"CPU": 1}])
    ray.get(group.ready(), timeout=60)
    return group.id.hex()

@ray.remote(num_cpus=0)
class Controller:
    def reserve(self):
        self.group = reserve()
        return self.group

controllers = [Controller.remote(), Controller.remote()]
held = {"driver": reserve(), "task": ray.get(ray.remote(num_cpus=0)(reserve).remote(), timeout=60)}
held["live"], held["dead"] = ray.get([controller.reserve.remote() for controller in controllers], timeout=60)
ray.kill(controllers[1])
deadline = time.monotonic() + 60
while placement_group_table()[held["dead"]]["state"] != "REMOVED" and time.monotonic() < deadline:
    free_orphans()
    time.sleep(0.2)
print(json.dumps({who: placement_group_table()[group]["state"] for who, group in held.items()}))
"""


def test_only_what_a_dead_controller_holds_is_freed() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    states = json.loads(done.stdout.splitlines()[-1])
    assert states == {"driver": "CREATED", "task": "CREATED", "live": "CREATED", "dead": "REMOVED"}
