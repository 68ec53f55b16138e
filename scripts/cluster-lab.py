"""What scripts/cluster-lab runs, in namespaces of its own. The first line of that script says what is checked.

The network: a bridge (lab0, 10.77.0.1, where clients and targets are), and a namespace each for etcd e1..e3 (10.77.0.11..13)
and for bridges n1..n3 (10.77.0.21..23). A cut is a blackhole route in one namespace: it works one way at once and both ways in
effect, since answers do not come. Every wait is bounded; every process dies with this one.
"""

import glob
import heapq
import http.client
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

SECONDS = int(sys.argv[1]) if len(sys.argv) > 1 else 60
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else int.from_bytes(os.urandom(4))
CHANCE = random.Random(SEED)
KEYS, CLIENTS_PER_KEY, TARGETS = 6, 3, 24
SETTLE = 5.0  # after any change, each target has exactly one prober
LOOK = 2.0  # four intervals of the targets' checker
ETCD = {f"e{i}": f"10.77.0.{10 + i}" for i in (1, 2, 3)}
NODES = {f"n{i}": f"10.77.0.{20 + i}" for i in (1, 2, 3)}
FOLDER = tempfile.mkdtemp(prefix="ringspan-lab-")
FAKETIME = next(iter(glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")), "")
OUTAGE = 60.0  # etcd is away altogether for as long, in a run that is long enough for it
START = time.monotonic()
PROBLEMS = []


def say(text):
    print(f"{time.monotonic() - START:7.2f}  {text}", flush=True)


def problem(text):
    PROBLEMS.append(text)
    say(f"PROBLEM  {text}")


def run(*args):
    subprocess.run(args, check=True, stdout=subprocess.DEVNULL)


class Place:
    """A network namespace, held by a sleeping process."""

    def __init__(self, name, address):
        self.name, self.address, self.process, self.cuts = name, address, None, set()
        self.holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        while os.readlink(f"/proc/{self.holder.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            time.sleep(0.01)
        run("ip", "link", "add", f"v{name}", "type", "veth", "peer", "name", "eth0", "netns", str(self.holder.pid))
        run("ip", "link", "set", f"v{name}", "master", "lab0", "up")
        self.inside("ip", "link", "set", "lo", "up")
        self.inside("ip", "address", "add", f"{address}/24", "dev", "eth0")
        self.inside("ip", "link", "set", "eth0", "up")

    def command(self, *args):
        return ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", *args]

    def inside(self, *args):
        run(*self.command(*args))

    def start(self):
        log = open(f"{FOLDER}/{self.name}.log", "ab")
        environment = dict(os.environ)
        if self.name in ETCD:
            args = etcd_args(self)
        else:
            args = bridge_args(self)
            # Its wall clock is what this file says, as long as the process lives; its monotonic one is the kernel's.
            with open(f"{FOLDER}/{self.name}.clock", "w") as file:
                file.write("+0")
            environment |= {
                "LD_PRELOAD": FAKETIME, "FAKETIME_TIMESTAMP_FILE": f"{FOLDER}/{self.name}.clock",
                "FAKETIME_CACHE_DURATION": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1",
            }  # fmt: skip
        self.process = subprocess.Popen(self.command(*args), stdout=log, stderr=log, cwd=FOLDER, env=environment)

    def jump(self, offset):
        with open(f"{FOLDER}/{self.name}.clock", "w") as file:
            file.write(offset)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = None

    def cut(self, others):
        for other in others - self.cuts:
            self.inside("ip", "route", "add", "blackhole", f"{other}/32")
        self.cuts |= others

    def heal(self):
        for other in self.cuts:
            self.inside("ip", "route", "del", "blackhole", f"{other}/32")
        self.cuts = set()


def etcd_args(place):
    client, peer = f"http://{place.address}:2379", f"http://{place.address}:2380"
    everybody = ",".join(f"{name}=http://{address}:2380" for name, address in ETCD.items())
    return [
        "etcd", "--name", place.name, "--data-dir", f"{FOLDER}/{place.name}", "--initial-cluster", everybody,
        "--listen-client-urls", client, "--advertise-client-urls", client,
        "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--logger", "zap", "--log-level", "error",
    ]  # fmt: skip


def bridge_args(place):
    endpoints = ", ".join(f'"http://{address}:2379"' for address in ETCD.values())
    with open(f"{FOLDER}/{place.name}.toml", "w") as file:
        file.write(
            f'data_dir = "{place.name}"\n[http]\nlisten = "{place.address}:8848"\n[link]\nlisten = "127.0.0.1:0"\n'
            f'[engine]\nworkers = 1\n[registry]\nstore = "etcd"\nauth = "off"\nmember = "{place.name}"\n'
            f'endpoints = [{endpoints}]\n'
        )
    return [os.environ["RINGSPAN"], "bridge", "--config", f"{place.name}.toml"]


def call(node, method, path, fields=(), timeout=8):
    """Status and body; None if there was no answer."""
    connection = http.client.HTTPConnection(NODES[node], 8848, timeout=timeout)
    try:
        connection.request(method, f"{path}?{urllib.parse.urlencode(dict(fields))}")
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def until(what, ask, patience=60):
    deadline = time.monotonic() + patience
    while not (answer := ask()):
        if time.monotonic() > deadline:
            sys.exit(f"waited {patience} s for {what}; logs in {FOLDER}")
        time.sleep(0.1)
    return answer


# The targets: real HTTP servers that note who asks.
ASKED = []  # (when, target, who)
ASKED_LOCK = threading.Lock()


def target(number):
    listener = socket.create_server(("10.77.0.1", 9000 + number), backlog=64)

    def serve(stream, peer):
        with ASKED_LOCK:
            ASKED.append((time.monotonic(), number, peer[0]))
        try:
            stream.settimeout(5)
            stream.recv(4096)
            stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        except OSError:
            pass
        finally:
            stream.close()

    def accept():
        with ThreadPoolExecutor(4) as pool:
            while True:
                try:
                    pool.submit(serve, *listener.accept())
                except RuntimeError:
                    return  # the interpreter ends

    threading.Thread(target=accept, daemon=True).start()


def look_at_probers(places, connected, why):
    """Each target is asked by exactly one of the bridges that are connected to etcd."""
    since = time.monotonic()
    time.sleep(LOOK)
    with ASKED_LOCK:
        seen = [(number, who) for when, number, who in ASKED if when >= since]
    good = {NODES[name] for name in connected}
    for number in range(TARGETS):
        who = {w for n, w in seen if n == number and w in good}
        if len(who) != 1:
            problem(f"{why}: target {number} is probed by {sorted(who) or 'nobody'}")


# Histories: per key a list of (start, end or None, kind, value).
HISTORY = [[] for _ in range(KEYS)]
STOP = threading.Event()


def value_in(body):
    instances = json.loads(body)["instances"]
    return instances[0]["metadata"]["value"] if instances else None


def client(key, number):
    chance = random.Random(f"{SEED}/{key}/{number}")
    place = [("serviceName", f"key-{key}"), ("ip", f"10.99.0.{key + 1}"), ("port", "80"), ("ephemeral", "false")]
    count = 0
    while not STOP.is_set():
        node = chance.choice(list(NODES))
        kind, value = chance.choice(["read", "read", "write", "write", "write", "remove"]), None
        start = time.monotonic()
        if kind == "read":
            answer = call(node, "GET", f"/api/v1/services/public/DEFAULT_GROUP/key-{key}", [("fresh", "true")])
            end = time.monotonic()
            if answer and answer[0] == 200:
                HISTORY[key].append((start, end, "read", value_in(answer[1])))
            elif answer and answer[0] == 404:
                HISTORY[key].append((start, end, "read", None))
        else:
            if kind == "write":
                count += 1
                value = f"{number}-{count}"
                answer = call(node, "POST", "/nacos/v1/ns/instance", [*place, ("metadata", json.dumps({"value": value}))])
            else:
                answer = call(node, "DELETE", "/nacos/v1/ns/instance", place)
            end = time.monotonic()
            if answer and answer[0] == 200:
                HISTORY[key].append((start, end, "write", value))
            elif answer is None or answer[0] == 503:
                HISTORY[key].append((start, None, "write", value))  # who knows
            else:
                problem(f"{kind} of key {key} at {node}: {answer}")
        time.sleep(chance.uniform(0, 0.2))


def is_linearizable(history):
    """Wing and Gong's search over one register, with the states that were seen kept (Lowe: "Testing for linearizability").
    A write without an answer may have happened at any time after its start, or never. If nobody read its value before the next
    write, it makes no difference: so it is only ever put right before a read that needs it, and of removals without an answer,
    which are all alike, only the number that is used up counts. Values of writes are never repeated, but for removals."""
    ops = sorted((op for op in history if op[1] is not None), key=lambda op: op[0])
    unanswered = {}
    for start, end, kind, value in history:
        if end is None and kind == "write":
            unanswered.setdefault(value, []).append(start)
    for starts in unanswered.values():
        starts.sort()
    # A state: the number of removals without an answer that are used up, then the first operation that is not done, those
    # after it that are, the register's value, and which writes without an answer are used up. Fewer removals leave more to
    # come: a state is looked at once, with the fewest.
    heap, seen, number = [], set(), itertools.count()

    def push(removals, first, done, value, used):
        heapq.heappush(heap, (removals, -first, -len(done), next(number), done, value, used))

    push(0, 0, frozenset(), None, frozenset())
    while heap:
        removals, first, _, _, done, value, used = heapq.heappop(heap)
        first = -first
        while first < len(ops) and first in done:
            done = done - {first}
            first += 1
        if first == len(ops):
            return True
        state = (first, done, value, used)
        if state in seen:
            continue
        seen.add(state)
        # Whatever begins before the first end among what is not done may be next.
        horizon, candidates = float("inf"), []
        for i in range(first, len(ops)):
            if ops[i][0] > horizon:
                break
            if i not in done:
                horizon = min(horizon, ops[i][1])
                candidates.append(i)
        for i in reversed(candidates):
            if ops[i][0] > horizon:
                continue
            _, _, kind, said = ops[i]
            then = done | {i}
            if kind == "write":
                push(removals, first, then, said, used)
            elif said == value:
                push(removals, first, then, value, used)
            elif said is None:
                starts = unanswered.get(None, [])
                if removals < len(starts) and starts[removals] <= horizon:
                    push(removals + 1, first, then, None, used)
            elif said not in used and said in unanswered and unanswered[said][0] <= horizon:
                push(removals, first, then, said, used | {said})
    return False


def self_check():
    """The checker must be able to say no."""
    assert is_linearizable([(0, 1, "write", 1), (2, 3, "read", 1)])
    assert is_linearizable([(0, None, "write", 1), (2, 3, "read", None), (4, 5, "read", 1)])
    assert is_linearizable([(0, 9, "write", 1), (1, 2, "read", 1), (3, 4, "read", 1)])
    assert not is_linearizable([(0, 1, "write", 1), (2, 3, "read", None)])
    assert not is_linearizable([(0, 1, "write", 1), (2, 3, "write", 2), (4, 5, "read", 1)])
    assert not is_linearizable([(0, 9, "write", 1), (1, 2, "read", 1), (3, 4, "read", None)])
    assert not is_linearizable([(0, None, "write", 1), (2, 3, "read", 1), (4, 5, "read", None)])
    assert is_linearizable([(0, 1, "write", 1), (0, None, "write", None), (2, 3, "read", None), (4, 5, "write", 2), (6, 7, "read", 2)])
    assert not is_linearizable([(0, 1, "write", 1), (4, None, "write", None), (2, 3, "read", None)])
    assert not is_linearizable([(0, None, "write", 1), (2, 3, "write", 2), (4, 5, "read", 1), (6, 7, "read", 2)])
    assert not is_linearizable([(0, None, "write", 1), (0, None, "write", 2), *[(n, n + 0.5, "read", v) for n, v in ((2, 1), (3, 2), (4, 1))]])
    many = [(n, None, "write", None) for n in range(500)] + [(n + 0.1, n + 0.5, "write", n) for n in range(500)]
    assert not is_linearizable([*many, (600, 601, "read", 7)])


WELL = set()  # (node, target) that has been seen up since the node's start


def look_at_health(places):
    """Targets are well all the time: whoever has once shown one as up goes on doing so."""
    while not STOP.is_set():
        for node in NODES:
            if places[node].process is None:
                WELL.difference_update({pair for pair in WELL if pair[0] == node})
                continue
            answer = call(node, "GET", "/api/v1/services/public/DEFAULT_GROUP/targets", timeout=2)
            if not answer or answer[0] != 200 or places[node].process is None:
                continue
            for instance in json.loads(answer[1])["instances"]:
                pair = (node, instance["port"])
                if instance["health"] == "up":
                    WELL.add(pair)
                elif pair in WELL or instance["health"] == "down":
                    problem(f"{node} shows {instance['port']} as {instance['health']} ({instance['reason']})")
                    WELL.discard(pair)
        time.sleep(0.1)


KINDS = [
    "kill bridge", "stop bridge", "freeze bridge", "cut bridge", "clock",
    "kill etcd", "kill leader", "cut etcd", "cut leader", "all etcd", "etcd away",
]  # fmt: skip
DECK = []


def leader():
    """The etcd that leads, by its own word."""
    for name, address in ETCD.items():
        connection = http.client.HTTPConnection(address, 2379, timeout=2)
        try:
            connection.request("POST", "/v3/maintenance/status", "{}")
            status = json.loads(connection.getresponse().read())
            if status["leader"] == status["header"]["member_id"]:
                return name
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            pass
        finally:
            connection.close()
    return None


def trouble(places):
    """One piece of trouble: what it is called, which bridges are connected to etcd meanwhile, and how it ends. Each kind comes
    once before any comes again."""
    if not DECK:
        DECK.extend(KINDS if SECONDS >= 5 * OUTAGE else KINDS[:-1])
        CHANCE.shuffle(DECK)
    kind = DECK.pop()
    all_nodes = set(NODES)
    if kind == "clock":
        name, offset = CHANCE.choice(list(NODES)), CHANCE.choice(["+1h", "-1h", "+400d", "-400d"])
        places[name].jump(offset)
        return f"the clock of {name} jumps by {offset}", all_nodes, lambda: places[name].jump("+0")
    if kind in ("kill leader", "cut leader"):
        name = until("a leader", leader)
        if kind == "kill leader":
            places[name].kill()
            return f"{kind} {name}", all_nodes, places[name].start
        places[name].cut({address for other, address in ETCD.items() if other != name})
        return f"{kind} {name} from the others", all_nodes, places[name].heal
    if kind in ("kill bridge", "stop bridge"):
        name = CHANCE.choice(list(NODES))
        if kind == "kill bridge":
            places[name].kill()
        else:
            process, places[name].process = places[name].process, None
            process.terminate()
            process.wait()
        return f"{kind} {name}", all_nodes - {name}, places[name].start
    if kind == "kill etcd":
        name = CHANCE.choice(list(ETCD))
        places[name].kill()
        return f"{kind} {name}", all_nodes, places[name].start
    if kind == "cut bridge":
        name = CHANCE.choice(list(NODES))
        places[name].cut(set(ETCD.values()))
        return f"{kind} {name} from etcd", all_nodes - {name}, places[name].heal
    if kind == "cut etcd":
        name = CHANCE.choice(list(ETCD))
        places[name].cut({address for other, address in ETCD.items() if other != name})
        return f"{kind} {name} from the others", all_nodes, places[name].heal
    if kind == "freeze bridge":
        name = CHANCE.choice(list(NODES))
        process = places[name].process
        process.send_signal(signal.SIGSTOP)
        return f"{kind} {name}", all_nodes - {name}, lambda: process.send_signal(signal.SIGCONT)
    for name in ETCD:
        places[name].kill()
    if kind == "etcd away":
        time.sleep(OUTAGE)
    return f"all etcd are killed ({kind})", set(), lambda: [places[name].start() for name in ETCD]


def main():
    self_check()
    if not FAKETIME:
        sys.exit("libfaketime is missing: scripts/setup")
    say(f"seed {SEED}, {SECONDS} s, logs in {FOLDER}")
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "lab0", "type", "bridge")
    run("ip", "address", "add", "10.77.0.1/24", "dev", "lab0")
    run("ip", "link", "set", "lab0", "up")
    places = {name: Place(name, address) for name, address in {**ETCD, **NODES}.items()}
    for name in [*ETCD, *NODES]:
        places[name].start()
    for node in NODES:
        until(f"{node} to answer", lambda node=node: call(node, "GET", "/api/v1/health", timeout=1))
    for number in range(TARGETS):
        target(number)
        fields = [("serviceName", "targets"), ("ip", "10.77.0.1"), ("port", 9000 + number), ("ephemeral", "false")]
        until("a target to be registered", lambda f=fields: (call("n1", "POST", "/nacos/v1/ns/instance", f) or [0])[0] == 200)
    checker = '{"type":"HTTP","path":"/","intervalMs":500,"timeoutMs":2000,"rise":1,"fall":3}'
    fields = [("serviceName", "targets"), ("clusterName", "DEFAULT"), ("healthChecker", checker)]
    assert (call("n2", "PUT", "/nacos/v1/ns/cluster", fields) or [0])[0] == 200, "the checker is taken"
    time.sleep(SETTLE)
    look_at_probers(places, set(NODES), "before any trouble")
    threads = [threading.Thread(target=client, args=(k, n)) for k in range(KEYS) for n in range(CLIENTS_PER_KEY)]
    threads.append(threading.Thread(target=look_at_health, args=(places,)))
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        name, connected, mend = trouble(places)
        say(name)
        time.sleep(SETTLE)
        if connected:
            look_at_probers(places, connected, name)
        mend()
        say(f"{name}: over")
        if "bridge" in name:
            until("the bridge", lambda: all(call(n, "GET", "/api/v1/health", timeout=1) for n in NODES))
        until("the cluster to take changes", lambda: all(fresh(n) for n in NODES))
        time.sleep(SETTLE)
        look_at_probers(places, set(NODES), f"{name}, and over")
    STOP.set()
    for thread in threads:
        thread.join()
    # What is there at the end is what every history must end with.
    for key in range(KEYS):
        for node in NODES:
            start = time.monotonic()
            path = f"/api/v1/services/public/DEFAULT_GROUP/key-{key}"
            answer = until("a last read", lambda n=node, p=path: call(n, "GET", p, [("fresh", "true")]))
            value = value_in(answer[1]) if answer[0] == 200 else None
            if answer[0] in (200, 404):
                HISTORY[key].append((start, time.monotonic(), "read", value))
            else:
                problem(f"the last read of key {key} at {node}: {answer}")
    answered = unanswered = 0
    for key, history in enumerate(HISTORY):
        answered += sum(end is not None for _, end, _, _ in history)
        unanswered += sum(end is None for _, end, _, _ in history)
        with open(f"{FOLDER}/history-{key}.json", "w") as file:
            json.dump(history, file)
        if not is_linearizable(history):
            problem(f"the history of key {key} is not linearizable: {FOLDER}/history-{key}.json")
    say(f"{answered} operations answered, {unanswered} writes without an answer, {len(ASKED)} probes, {len(PROBLEMS)} problems")
    if PROBLEMS:
        sys.exit(1)
    shutil.rmtree(FOLDER)


def fresh(node):
    answer = call(node, "GET", "/api/v1/services/public/DEFAULT_GROUP/targets", [("fresh", "true")])
    return answer is not None and answer[0] == 200


main()
