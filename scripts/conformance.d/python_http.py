"""nacos-sdk-python's HTTP client (module nacos; 1.0.0 and 2.0.11), unmodified. See scripts/conformance.py."""

import os
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
ok("register: with beats")
assert ports() == [1001]
ok("list")
# It polls.
events = []


def subscribe():
    listener = nacos.listener.SubscribeListener(fn=lambda e, i: events.append((e, i.instance["port"])), listener_name="l")
    client.subscribe(listener, 0.2, SERVICE)


subscribe()
assert client.add_naming_instance(SERVICE, "127.0.0.1", 1002)
until("push: told of another", lambda: (nacos.listener.Event.ADDED, 1002) in events)
assert client.remove_naming_instance(SERVICE, "127.0.0.1", 1002)
until("push: told of its end", lambda: (nacos.listener.Event.DELETED, 1002) in events)
assert client.add_naming_instance("python-kept", "127.0.0.1", 1, ephemeral=False)
ok("persist")
print("RESTART", flush=True)
sys.stdin.readline()
until("back: by its beats", lambda: ports() == [1001])
assert ports("python-kept") == [1]
ok("kept")
# Its polling ended with the first poll that failed.
client.stop_subscribe()
subscribe()
assert client.add_naming_instance(SERVICE, "127.0.0.1", 1003)
until("push again", lambda: (nacos.listener.Event.ADDED, 1003) in events)
assert client.remove_naming_instance(SERVICE, "127.0.0.1", 1003)
client.stop_subscribe()
assert client.remove_naming_instance("python-kept", "127.0.0.1", 1, ephemeral=False)
assert client.remove_naming_instance(SERVICE, "127.0.0.1", 1001)
assert ports() == [] == ports("python-kept")
ok("deregister")
# 2.0.11 does not end its timers.
os._exit(0)
