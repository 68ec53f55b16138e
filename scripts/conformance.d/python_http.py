"""nacos-sdk-python's HTTP client (module nacos; 1.0.0 and 2.0.11), unmodified. See scripts/conformance.py."""

import sys
import time

import nacos

ADDRESS, SERVICE = sys.argv[1], "python-http"


def ok(step):
    print(f"OK {step}", flush=True)


def until(step, holds):
    for _ in range(600):
        try:
            if holds():
                return ok(step)
        except (OSError, nacos.NacosException):
            pass
        time.sleep(0.05)
    sys.exit(f"not so: {step}")


client = nacos.NacosClient(ADDRESS, namespace="conformance")


def ports(service=SERVICE):
    return sorted(h["port"] for h in client.list_naming_instance(service)["hosts"])


assert client.add_naming_instance(SERVICE, "127.0.0.1", 1001, heartbeat_interval=0.3, metadata={"k": "v"})
ok("register, with beats")
assert ports() == [1001]
ok("list")
events = []
client.subscribe(nacos.listener.SubscribeListener(fn=lambda e, i: events.append((e, i.instance["port"])),
                                                  listener_name="l"), 0.2, SERVICE)
assert client.add_naming_instance(SERVICE, "127.0.0.1", 1002)
until("subscribe: told of another", lambda: (nacos.listener.Event.ADDED, 1002) in events)
assert client.remove_naming_instance(SERVICE, "127.0.0.1", 1002)
until("subscribe: told of its end", lambda: (nacos.listener.Event.DELETED, 1002) in events)
assert client.add_naming_instance("python-kept", "127.0.0.1", 1, ephemeral=False)
ok("register, persistent")
print("RESTART", flush=True)
sys.stdin.readline()
until("after a restart: its beats register it anew", lambda: ports() == [1001])
assert ports("python-kept") == [1]
ok("after a restart: the persistent one is there")
client.stop_subscribe()
assert client.remove_naming_instance("python-kept", "127.0.0.1", 1, ephemeral=False)
assert client.remove_naming_instance(SERVICE, "127.0.0.1", 1001)
assert ports() == [] == ports("python-kept")
ok("deregister")
