"""What a user of nacos-sdk-python 1.0.0 does, against a registry at sys.argv[1], HOST:PORT.

Every step awaits what it expects, for 20 s at most; the first that does not come true ends the run with exit code 1.
"""

import json
import socket
import sys
import threading
import time
import urllib.error
import urllib.request

import nacos

ADDRESS = sys.argv[1]
PATIENCE_S = 20


def until(what, holds):
    """Waits until holds() is true."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            if holds():
                print(f"ok    {what}", flush=True)
                return
        except (OSError, nacos.NacosException):
            pass
        if time.monotonic() > deadline:
            print(f"FAIL  {what}", flush=True)
            sys.exit(1)
        time.sleep(0.05)


def now(what, holds):
    """holds must be true as it stands."""
    print(f"{'ok   ' if holds else 'FAIL '} {what}", flush=True)
    if not holds:
        sys.exit(1)


def get(path):
    with urllib.request.urlopen(f"http://{ADDRESS}{path}", timeout=5) as answer:
        return answer.read()


until("the server is ready", lambda: get("/nacos/v1/console/health/readiness") == b"OK")
client = nacos.NacosClient(ADDRESS, namespace="conformance")


def hosts(service, **kwargs):
    return client.list_naming_instance(service, **kwargs)["hosts"]


def healths(service, **kwargs):
    return {f"{h['ip']}:{h['port']}": h["healthy"] for h in hosts(service, **kwargs)}


# Ephemeral instances: the SDK's own beats keep one alive; without them it is late, then gone.
short = {"preserved.heart.beat.timeout": "1000", "preserved.ip.delete.timeout": "2000"}
now("register, ephemeral, with beats", client.add_naming_instance(
    "beats", "127.0.0.1", 1001, metadata=short, heartbeat_interval=0.3))
now("register, ephemeral, without", client.add_naming_instance("beats", "127.0.0.1", 1002, metadata=short))
now("both are healthy", healths("beats") == {"127.0.0.1:1001": True, "127.0.0.1:1002": True})
until("the silent one is late", lambda: healths("beats").get("127.0.0.1:1002") is False)
now("healthyOnly leaves it out", healths("beats", healthy_only=True) == {"127.0.0.1:1001": True})
until("the silent one is gone", lambda: healths("beats") == {"127.0.0.1:1001": True})
answer = client.send_heartbeat("beats", "127.0.0.1", 1003, metadata=short)
now("a beat registers", answer["code"] == 10200 and healths("beats").get("127.0.0.1:1003") is True)
now("and tells the interval", answer["clientBeatInterval"] == 5000 and answer["lightBeatEnabled"] is True)
now("deregister", client.remove_naming_instance("beats", "127.0.0.1", 1001))
until("and it stays away", lambda: healths("beats") == {})

# Subscription: the SDK polls, compares and calls.
events = []
arrived = threading.Condition()


def on_event(event, instance):
    with arrived:
        events.append((event, instance.instance["port"]))
        arrived.notify_all()


now("register, to be subscribed to", client.add_naming_instance("watched", "127.0.0.1", 2001, ephemeral=False))
client.subscribe(nacos.listener.SubscribeListener(fn=on_event, listener_name="l"), 0.2, "watched")
now("register another", client.add_naming_instance("watched", "127.0.0.1", 2002, ephemeral=False))
until("the subscriber hears of it", lambda: (nacos.listener.Event.ADDED, 2002) in events)
now("modify", client.modify_naming_instance("watched", "127.0.0.1", 2002, weight=3, metadata={"k": "v"}))
until("the subscriber hears of it", lambda: (nacos.listener.Event.MODIFIED, 2002) in events)
now("deregister", client.remove_naming_instance("watched", "127.0.0.1", 2002, ephemeral=False))
until("the subscriber hears of it", lambda: (nacos.listener.Event.DELETED, 2002) in events)
client.stop_subscribe()

# Persistent instances: probed by the registry.
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
closed = socket.socket()
closed.bind(("127.0.0.1", 0))  # bound, so that nobody else takes it; not listening, so that it refuses
dead = closed.getsockname()[1]
for p in (port, dead):
    now(f"register, persistent, port {p}", client.add_naming_instance(
        "probed", "127.0.0.1", p, cluster_name="c1", weight=2.5, metadata={"zone": "a"}, ephemeral=False))
until("the dead one is found dead", lambda: healths("probed") == {f"127.0.0.1:{port}": True, f"127.0.0.1:{dead}": False})
now("clusters filter", len(hosts("probed", clusters="c1,c2")) == 2 and hosts("probed", clusters="c2") == [])
detail = client.get_naming_instance("probed", "127.0.0.1", port, cluster_name="c1")
now("detail", (detail["weight"], detail["metadata"], detail["clusterName"]) == (2.5, {"zone": "a"}, "c1"))
now("modify: disabled", client.modify_naming_instance("probed", "127.0.0.1", dead, cluster_name="c1", enable=False))
now("a disabled one is not listed", healths("probed") == {f"127.0.0.1:{port}": True})
services = json.loads(get("/nacos/v1/ns/service/list?pageNo=1&pageSize=10&namespaceId=conformance"))
now("services", services == {"count": 2, "doms": ["probed", "watched"]})
try:
    client.add_naming_instance("probed", "127.0.0.1", 3000, ephemeral=True)
    refused = False
except nacos.NacosException:
    refused = True
now("kinds do not mix", refused)
try:
    get("/nacos/v1/ns/instance?serviceName=nobody&ip=127.0.0.1&port=1")
    status = 200
except urllib.error.HTTPError as error:
    status = error.code
now("an unknown instance is 404", status == 404)

for p in (port, dead):
    now("deregister", client.remove_naming_instance("probed", "127.0.0.1", p, cluster_name="c1", ephemeral=False))
now("deregister", client.remove_naming_instance("watched", "127.0.0.1", 2001, ephemeral=False))
now("nothing is left", hosts("probed") == [] and hosts("watched") == [])
print("all is as the SDK expects")
