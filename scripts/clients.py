"""Real clients through bridge and agent; see scripts/clients. Owns the servers it starts and ends them all."""

import argparse
import asyncio
import hashlib
import http.server
import os
import pathlib
import queue
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

args = argparse.ArgumentParser(description="Real clients through the tunnel: one line each, ok or FAILED.")
args.add_argument("--short", action="store_true", help="scp moves 50 MB, not 2 GB")
args.add_argument("--only", default="", help="only clients whose name contains this word")
args.add_argument("--ringspan", default="target/release/ringspan", help="the binary")
args.add_argument("--port-base", type=int, default=25000, help="first of thirty ports")
args.add_argument("--keep", action="store_true", help="keep files and logs")
args = args.parse_args()

RINGSPAN = str(pathlib.Path(args.ringspan).resolve())
# Not the work tree: sshd refuses keys in folders that others may write.
FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="ringspan-clients-"))
FILE_BYTES = 20_000_000
SCP_BYTES = 50_000_000 if args.short else 2_000_000_000
PATIENCE = 30
children = []


def port(offset):
    """Servers have 10 to 19, the bridge's listeners 20 to 29."""
    return args.port_base + offset


def start(name, command, **more):
    log = open(FOLDER / f"{name}.log", "ab")
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=FOLDER, **more)
    children.append((name, child))
    return child


def run(command, timeout=120, **more):
    """Its output; an exception with what it said if it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, cwd=FOLDER, **more)
    if done.returncode != 0:
        words = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {words[-400:]}")
    return done.stdout


def until(what, attempt):
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return attempt()
        except Exception as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{what}: {error}") from error
            time.sleep(0.1)


def listening(number):
    until(f"port {number}", lambda: socket.create_connection(("127.0.0.1", number), 1).close())


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else slow_digest(file)


def slow_digest(file):
    sha = hashlib.sha256()
    while block := file.read(1 << 20):
        sha.update(block)
    return sha.hexdigest()


def same(got, wanted):
    if got != wanted:
        raise RuntimeError(f"{got!r} where {wanted!r} was expected")


def make_file(name, size):
    """Of a seed, so that a difference can be looked at again."""
    rng, path = random.Random(name), FOLDER / name
    with open(path, "wb") as file:
        block = rng.randbytes(1 << 20)
        while size > 0:
            # A counter in each block: two blocks that change places are seen.
            file.write((size.to_bytes(8, "little") + block)[: min(size, 1 << 20)])
            size -= 1 << 20
    return path


# What the page has seen comes back as a POST: a browser's own clocks (--timeout, --virtual-time-budget) end before a busy
# machine has carried 200 messages.
PAGE = """<!doctype html><title>websocket</title><script>
const wanted = 200; let got = 0, wrong = '';
const ws = new WebSocket(`ws://${location.host}/ws`);
ws.onopen = () => { for (let i = 0; i < wanted; i++) ws.send(`${i}:` + 'x'.repeat(i * 50)); };
ws.onmessage = (m) => {
  if (m.data !== `${got}:` + 'x'.repeat(got * 50)) { wrong = `wrong at ${got}, `; ws.close(); return; }
  if (++got === wanted) { ws.close(1000); }
};
ws.onclose = (e) => fetch('/result', { method: 'POST', body: `${wrong}echoed ${got}, closed ${e.code}` });
</script>"""
results = queue.Queue()


class Site(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *more):
        super().__init__(*more, directory=str(FOLDER / "site"))

    def do_POST(self):
        results.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def serve_site():
    (FOLDER / "site").mkdir()
    (FOLDER / "site" / "page.html").write_text(PAGE)
    shutil.copy(make_file("file", FILE_BYTES), FOLDER / "site" / "file")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port(10)), Site)
    # Kept connections that the tunnel drops at its end are no news.
    server.handle_error = lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()


def serve_websocket():
    import websockets

    async def echo(ws, *_):
        async for message in ws:
            await ws.send(message)

    async def forever():
        async with websockets.serve(echo, "127.0.0.1", port(11)):
            await asyncio.Future()

    threading.Thread(target=lambda: asyncio.run(forever()), daemon=True).start()


def serve_ssh():
    for key in ["host", "user"]:
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(FOLDER / key)])
    (FOLDER / "authorized").write_text((FOLDER / "user.pub").read_text())
    (FOLDER / "known").write_text(f"[127.0.0.1]:{port(22)} {(FOLDER / 'host.pub').read_text()}")
    config = (
        f"ListenAddress 127.0.0.1:{port(12)}\nHostKey {FOLDER}/host\nAuthorizedKeysFile {FOLDER}/authorized\n"
        f"PidFile {FOLDER}/sshd.pid\nPasswordAuthentication no\nUsePAM no\nStrictModes no\nPermitRootLogin yes\n"
        "Subsystem sftp internal-sftp\n"
    )
    (FOLDER / "sshd.conf").write_text(config)
    if os.getuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)
    start("sshd", [shutil.which("sshd"), "-D", "-e", "-f", str(FOLDER / "sshd.conf")])


def serve_database():
    data = FOLDER / "mariadb"
    data.mkdir()
    user = ["--user=root"] if os.getuid() == 0 else []
    run(["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal", *user], 120)
    mariadbd = ["mariadbd", "--no-defaults", f"--datadir={data}", "--bind-address=127.0.0.1", f"--port={port(13)}"]
    start("mariadbd", [*mariadbd, f"--socket={FOLDER}/mariadb.sock", "--innodb-buffer-pool-size=16M", *user])


def serve_dns():
    lines = [f"--host-record=host{i}.test,10.9.{i // 250}.{i % 250 + 1}" for i in range(200)]
    lines += ["--txt-record=long.test," + ",".join(["t" * 200] * 4)]
    common = ["--no-daemon", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--bind-interfaces"]
    start("dnsmasq", ["dnsmasq", *common, f"--port={port(14)}", "--listen-address=127.0.0.1", "--user=", *lines])


def serve_git():
    repository = FOLDER / "repository"
    who = ["-c", "user.name=clients", "-c", "user.email=clients@example.com"]
    run(["git", "init", "-q", "-b", "main", str(repository)])
    for n in range(20):
        (repository / f"file{n}").write_bytes(random.Random(n).randbytes(300_000))
        run(["git", "-C", str(repository), "add", "."])
        run(["git", "-C", str(repository), *who, "commit", "-q", "-m", f"file {n}"])
    daemon = ["git", "daemon", "--reuseaddr", "--export-all", f"--base-path={FOLDER}", "--listen=127.0.0.1"]
    start("git", [*daemon, f"--port={port(15)}", str(FOLDER)])


def tunnel():
    """Bridge and agent with a listener of each type."""
    bridge = f"""
data_dir = "{FOLDER}/bridge"
[http]
listen = "127.0.0.1:{port(0)}"
[link]
listen = "127.0.0.1:{port(1)}"
[[listener]]
name = "web"
type = "http"
listen = "127.0.0.1:{port(20)}"
service = "web"
[[listener.route]]
path = "/ws"
service = "ws"
[[listener]]
name = "ssh"
type = "tcp"
listen = "127.0.0.1:{port(22)}"
service = "ssh"
[[listener]]
name = "db"
type = "tcp"
listen = "127.0.0.1:{port(23)}"
service = "db"
[[listener]]
name = "dns"
type = "udp"
listen = "127.0.0.1:{port(24)}"
service = "dns"
[[listener]]
name = "git"
type = "tcp"
listen = "127.0.0.1:{port(25)}"
service = "git"
[[listener]]
name = "socks"
type = "socks5"
listen = "127.0.0.1:{port(26)}"
service = "net"
auth = "none"
[[listener]]
name = "plain"
type = "tcp"
listen = "127.0.0.1:{port(27)}"
service = "web"
"""
    exposes = [("web", "tcp", 10), ("ws", "tcp", 11), ("ssh", "tcp", 12), ("db", "tcp", 13), ("dns", "udp", 14), ("git", "tcp", 15)]
    agent = f'[link]\ntoken_file = "{FOLDER}/token"\nstate_dir = "{FOLDER}/agent"\n'
    for service, kind, at in exposes:
        agent += f'[[expose]]\nservice = "{service}"\ntype = "{kind}"\naddress = "127.0.0.1:{port(at)}"\n'
    agent += '[[expose]]\nservice = "net"\ntype = "proxy"\nallow = ["127.0.0.0/8:*", "localhost:*"]\n'
    (FOLDER / "bridge.toml").write_text(bridge)
    (FOLDER / "agent.toml").write_text(agent)
    for file in ["bridge.toml", "agent.toml"]:
        run([RINGSPAN, "check-config", str(FOLDER / file)])
    start("bridge", [RINGSPAN, "bridge", "--config", str(FOLDER / "bridge.toml")])
    listening(port(1))
    (FOLDER / "token").write_bytes(run([RINGSPAN, "token", "create", "--config", str(FOLDER / "bridge.toml")]))
    start("agent", [RINGSPAN, "agent", "--config", str(FOLDER / "agent.toml")])
    # Every backend that is checked has been found well.
    wanted = [f'service={service} ' for service, kind, _ in exposes if kind == "tcp"]
    up = lambda: [line.replace('"', "") for line in (FOLDER / "bridge.log").read_text().splitlines() if "backend up" in line]
    until("backends", lambda: same([w for w in wanted if not any(w in line for line in up())], []))
    until("the tunnel", lambda: run(["curl", "-sf", "-m", "2", f"http://127.0.0.1:{port(27)}/page.html"], 10))


# The clients: each says what it compared, or raises.


def curl_tcp():
    run(["curl", "-sf", "-o", "got-tcp", f"http://127.0.0.1:{port(27)}/file"])
    same(digest(FOLDER / "got-tcp"), digest(FOLDER / "file"))
    return f"{FILE_BYTES} bytes through a tcp listener, SHA-256 the same"


def curl_http():
    run(["curl", "-sf", "-o", "got-http", f"http://127.0.0.1:{port(20)}/file"])
    same(digest(FOLDER / "got-http"), digest(FOLDER / "file"))
    missing = run(["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://127.0.0.1:{port(20)}/nothing-here"])
    same(missing, b"404")
    return f"{FILE_BYTES} bytes through an http listener, SHA-256 the same; a 404 is a 404"


def curl_socks():
    for n, way in enumerate(["--socks5", "--socks5-hostname"]):
        target = ["127.0.0.1", "localhost"][n]
        # Name look-ups of --socks5-hostname are the agent's.
        run(["curl", "-sf", "-4", way, f"127.0.0.1:{port(26)}", "-o", f"got-socks{n}", f"http://{target}:{port(10)}/file"])
        same(digest(FOLDER / f"got-socks{n}"), digest(FOLDER / "file"))
    refused = subprocess.run(
        ["curl", "-s", "-m", "10", "--socks5", f"127.0.0.1:{port(26)}", "http://192.0.2.1/"], capture_output=True, check=False
    )
    if refused.returncode == 0:
        raise RuntimeError("a target that the allow-list does not have was reached")
    return f"twice {FILE_BYTES} bytes by address and by name, SHA-256 the same; what is not allowed is refused"


def browser():
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    # With a debugging port it stays until it is ended.
    command += [f"--user-data-dir={FOLDER}/chromium", "--remote-debugging-port=0"]
    chromium = start("chromium", [*command, f"http://127.0.0.1:{port(20)}/page.html"])
    try:
        same(results.get(timeout=90), "echoed 200, closed 1000")
    except queue.Empty:
        raise RuntimeError(f"no word from the page; chromium ended with {chromium.poll()}") from None
    finally:
        children.remove(("chromium", chromium))
        chromium.terminate()
        try:
            chromium.wait(10)
        except subprocess.TimeoutExpired:
            chromium.kill()
    return "chromium: a page, 200 websocket messages echoed and a POST through an http listener"


def ssh_options():
    options = ["-F", "/dev/null", "-i", str(FOLDER / "user"), "-o", f"UserKnownHostsFile={FOLDER}/known", "-o", "BatchMode=yes"]
    return [*options, "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=10"]


def ssh():
    user = run(["id", "-un"]).decode().strip()
    command = ["ssh", *ssh_options(), "-p", str(port(22)), f"{user}@127.0.0.1", "cat; echo end"]
    done = subprocess.run(command, input=b"through the tunnel\n" * 10_000, capture_output=True, timeout=60, check=False)
    same((done.returncode, done.stdout), (0, b"through the tunnel\n" * 10_000 + b"end\n"))
    return "a command, 190,000 bytes to its input and back, half-closed"


def scp():
    user = run(["id", "-un"]).decode().strip()
    source = make_file("large", SCP_BYTES)
    there, back = f"{FOLDER}/there", FOLDER / "back"
    to = f"{user}@127.0.0.1:{there}"
    started = time.monotonic()
    run(["scp", "-q", *ssh_options(), "-P", str(port(22)), str(source), to], 600)
    run(["scp", "-q", *ssh_options(), "-P", str(port(22)), to, str(back)], 600)
    took = time.monotonic() - started
    same(digest(back), digest(source))
    for path in [source, pathlib.Path(there), back]:
        path.unlink()
    return f"{SCP_BYTES / 1e9:.2f} GB there and back in {took:.0f} s, SHA-256 the same"


def database():
    mariadb = ["mariadb", "--no-defaults", "-h", "127.0.0.1", "-P", str(port(23)), "-u", "root", "-N", "-B", "-e"]
    rows = 20_000
    run([*mariadb, "CREATE DATABASE t; USE t; CREATE TABLE t (a INT PRIMARY KEY, b TEXT);"
         f"INSERT INTO t SELECT seq, REPEAT('x', seq % 500) FROM seq_1_to_{rows}"])
    sums = run([*mariadb, "SELECT COUNT(*), SUM(LENGTH(b)) FROM t.t"]).split()
    same([int(n) for n in sums], [rows, sum(n % 500 for n in range(1, rows + 1))])
    text = run([*mariadb, "SELECT a, b FROM t.t ORDER BY a"])
    wanted = "".join(f"{n}\t{'x' * (n % 500)}\n" for n in range(1, rows + 1)).encode()
    same(hashlib.sha256(text).hexdigest(), hashlib.sha256(wanted).hexdigest())
    return f"mariadb: {rows} rows written, summed and read, SHA-256 of {len(text)} bytes the same"


def dns():
    dig = ["dig", "@127.0.0.1", "-p", str(port(24)), "+short", "+notcp", "+tries=2", "+time=3"]
    for i in range(200):
        same(run([*dig, f"host{i}.test"]).decode().strip(), f"10.9.{i // 250}.{i % 250 + 1}")
    long = run([*dig, "+bufsize=4096", "TXT", "long.test"]).decode()
    same(long.count("t"), 800)
    # Twenty at once, each from a port of its own.
    many = [subprocess.Popen([*dig, f"host{i}.test"], stdout=subprocess.PIPE) for i in range(20)]
    for i, one in enumerate(many):
        same(one.communicate(timeout=30)[0].decode().strip(), f"10.9.0.{i + 1}")
    return "dig: 220 answers over UDP, one of 800 bytes, 20 at once"


def git():
    run(["git", "clone", "-q", f"git://127.0.0.1:{port(25)}/repository", "clone"])
    head = [run(["git", "-C", str(FOLDER / where), "rev-parse", "HEAD"]) for where in ["repository", "clone"]]
    same(head[1], head[0])
    run(["git", "-C", str(FOLDER / "clone"), "fsck", "--full", "--strict"])
    return "a clone of 20 commits, the same head, fsck clean"


SERVERS = [serve_site, serve_websocket, serve_ssh, serve_database, serve_dns, serve_git]
CLIENTS = [
    ("curl tcp", curl_tcp),
    ("curl http", curl_http),
    ("curl socks5", curl_socks),
    ("browser", browser),
    ("ssh", ssh),
    ("scp", scp),
    ("mariadb", database),
    ("dns", dns),
    ("git clone", git),
]


def main():
    if not os.path.isfile(RINGSPAN):
        sys.exit(f"clients: no ringspan at {RINGSPAN}. Try: cargo build --release")
    asked = failed = 0
    try:
        for serve in SERVERS:
            serve()
        for offset in [10, 11, 12, 13, 15]:
            listening(port(offset))
        tunnel()
        for name, client in CLIENTS:
            if args.only not in name:
                continue
            asked += 1
            try:
                print(f"{name:12} ok      {client()}", flush=True)
            except Exception as error:
                failed += 1
                print(f"{name:12} FAILED  {error}", flush=True)
        for name, child in children:
            if child.poll() is not None:
                failed += 1
                print(f"{name:12} FAILED  it ended by itself with {child.returncode}", flush=True)
    except Exception as error:
        failed += 1
        print(f"{'setting up':12} FAILED  {error}", flush=True)
    finally:
        if failed:
            for name in ["bridge", "agent"]:
                log = FOLDER / f"{name}.log"
                if log.exists():
                    print(f"--- the end of {log}:", *log.read_text(errors="replace").splitlines()[-12:], sep="\n", file=sys.stderr)
        for _, child in reversed(children):
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        for _, child in children:
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
        if args.keep:
            print(f"clients: files are in {FOLDER}", file=sys.stderr)
        else:
            shutil.rmtree(FOLDER, ignore_errors=True)
    print(f"{max(asked - failed, 0)} passed, {failed} failed")
    sys.exit(1 if failed else 0)


main()
