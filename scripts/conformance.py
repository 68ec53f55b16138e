"""Installs SDKs, runs each through its script in scripts/conformance.d against a server of its own, prints a table.

An SDK's script gets the server's address as its last argument and prints a line for each thing that it has seen:

    OK step[: what]    it works. A step may come more than once
    NO step: why       the SDK cannot do that
    RESTART            the server is to be killed and started again on the same data; a line on the script's standard input
                       says that it is back

Exit code 0, and all of STEPS said: it passed. What it and the server wrote is in target/conformance/NAME.log and NAME.server.log.
"""

import argparse
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts" / "conformance.d"
WORK = ROOT / "target" / "conformance"
# Register, list, subscribe and be pushed, register a persistent instance; after the server was killed and is back: the client's
# own instances are back, the persistent one has stayed, changes are pushed; and deregister.
STEPS = ["register", "list", "push", "persist", "back", "kept", "push again", "deregister"]
# From its start to its end, installing aside; Python's clients wait up to 30 s before they do again what was lost.
PATIENCE_S = 180
INSTALL_S = 3600
PORT = int(os.environ.get("PORT", "24000"))


def run(*command, cwd=None):
    subprocess.run([str(c) for c in command], cwd=cwd, check=True, timeout=INSTALL_S,
                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def python(version, script):
    """A virtual environment with one version of nacos-sdk-python."""
    def prepare(folder):
        folder = folder.parent / f"python-{version}"
        if not (folder / "bin" / "python").exists():
            run(sys.executable, "-m", "venv", folder)
            run(folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", f"nacos-sdk-python=={version}")
        return [folder / "bin" / "python", SCRIPTS / script]
    return [sys.executable], prepare


def node(version):
    def prepare(folder):
        if not (folder / "node_modules" / "nacos").exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "package.json").write_text("{}")
            run("npm", "install", "--silent", f"nacos@{version}", cwd=folder)
        shutil.copy(SCRIPTS / "node_http.js", folder / "main.js")
        return ["node", folder / "main.js"]
    return ["node", "npm"], prepare


def go():
    def prepare(folder):
        shutil.copytree(SCRIPTS / "go", folder, dirs_exist_ok=True)
        run("go", "mod", "tidy", cwd=folder)
        run("go", "build", "-o", "client", ".", cwd=folder)
        return [folder / "client"]
    return ["go"], prepare


def rust(crate, *arguments):
    def prepare(folder):
        folder = folder.parent / f"rust-{crate}"
        shutil.copytree(SCRIPTS / f"rust-{crate}", folder, dirs_exist_ok=True)
        run("cargo", "build", "--quiet", "--target-dir", folder / "target", cwd=folder)
        return [folder / "target" / "debug" / "client", *arguments]
    return ["cargo"], prepare


def java():
    def prepare(folder):
        shutil.copytree(SCRIPTS / "java", folder, dirs_exist_ok=True)
        run("mvn", "-q", "-B", "package", "dependency:copy-dependencies", cwd=folder)
        return ["java", "-cp", f"{folder}/target/classes:{folder}/target/dependency/*", "Client"]
    return ["java", "mvn"], prepare


SDKS = {
    "python-http-1.0.0": python("1.0.0", "python_http.py"),
    "python-http-2.0.11": python("2.0.11", "python_http.py"),
    "python-grpc-2.0.11": python("2.0.11", "python_grpc.py"),
    "python-grpc-3.2.0": python("3.2.0", "python_grpc.py"),
    "node-http-2.6.3": node("2.6.3"),
    "rust-nacos-sdk-0.8.3": rust("nacos-sdk"),
    "rust-nacos_rust_client-0.3.3-grpc": rust("nacos_rust_client", "grpc"),
    "rust-nacos_rust_client-0.3.3-http": rust("nacos_rust_client", "http"),
    "go-2.3.5": go(),
    "java-2.5.1": java(),
}


def free_ports():
    """An HTTP port whose gRPC port is free too, and one for the link. Below the range that the kernel gives out."""
    for port in range(PORT, PORT + 400, 4):
        try:
            for p in (port, port + 1000, port + 1):
                with socket.socket() as s:
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    s.bind(("127.0.0.1", p))
            return port
        except OSError:
            continue
    sys.exit(f"no free port from {PORT} to {PORT + 400}. Try: PORT=25000 scripts/conformance")


class Server:
    """`BINARY bridge` on data of its own."""

    def __init__(self, binary, folder, log):
        self.binary, self.folder, self.log, self.port = binary, folder, log, free_ports()
        self.address = f"127.0.0.1:{self.port}"
        (folder / "bridge.toml").write_text(
            f'data_dir = "{folder}/data"\n[http]\nlisten = "{self.address}"\n[link]\nlisten = "127.0.0.1:{self.port + 1}"\n')
        self.process = None

    def start(self):
        with open(self.log, "a", encoding="utf-8") as log:
            self.process = subprocess.Popen([self.binary, "bridge", "--config", self.folder / "bridge.toml"],
                                            stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(f"http://{self.address}/nacos/v1/console/health/readiness", timeout=2):
                    return
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise RuntimeError(f"the server does not come up: {self.log.read_text()[-2000:]}")
                time.sleep(0.05)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def converse(binary, name, command):
    """Runs one SDK's script; what it said of each step, and what went wrong."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, log = pathlib.Path(scratch), WORK / f"{name}.log"
        server_log = WORK / f"{name}.server.log"
        server_log.write_text("")
        server = Server(binary, folder, server_log)
        server.start()
        said = {}
        with open(log, "w", encoding="utf-8") as errors:
            sdk = subprocess.Popen([str(c) for c in command] + [server.address], cwd=folder, text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        watchdog = threading.Timer(PATIENCE_S, sdk.kill)
        watchdog.start()
        try:
            for line in sdk.stdout:
                word, _, rest = line.strip().partition(" ")
                if word in ("OK", "NO"):
                    said.setdefault(rest.partition(":")[0], "ok" if word == "OK" else "-")
                    print(f"      {'' if word == 'OK' else 'not served by the SDK: '}{rest}", flush=True)
                elif word == "RESTART":
                    server.kill()
                    server.start()
                    sdk.stdin.write("back\n")
                    sdk.stdin.flush()
            code = sdk.wait()
        finally:
            watchdog.cancel()
            sdk.kill()
            server.kill()
        missing = [step for step in STEPS if step not in said]
        if code == 0 and not missing:
            return said, None
        wrong = f"exit code {code}; not seen: {', '.join(missing) or 'nothing'}\n{log.read_text()[-1500:].strip()}"
        return said, f"{wrong}\n--- server ({server_log}) ---\n{server_log.read_text()[-1500:]}"


def binary_of(asked):
    """The program to run: the one asked for, or a release build of this tree."""
    if not asked:
        run("cargo", "build", "--quiet", "--release", "--locked", "-p", "ringspan", cwd=ROOT)
        asked = ROOT / "target" / "release" / "ringspan"
    if not os.access(asked, os.X_OK):
        sys.exit(f"{asked}: no such program. Try: scripts/conformance, which builds one")
    return os.path.abspath(asked)


def main():
    parser = argparse.ArgumentParser(description="unmodified Nacos SDKs against `ringspan bridge`")
    parser.add_argument("--binary", default=os.environ.get("RINGSPAN"),
                        help="the ringspan to run (or RINGSPAN=PATH); without: target/release/ringspan, built")
    parser.add_argument("--list", action="store_true", help="the SDKs' names")
    parser.add_argument("sdk", nargs="*", help="all, if none is named")
    args = parser.parse_args()
    if args.list:
        print("\n".join(SDKS))
        return
    unknown = [name for name in args.sdk if name not in SDKS]
    if unknown:
        sys.exit(f"no such SDK: {', '.join(unknown)}. Try: scripts/conformance --list")
    binary = binary_of(args.binary)
    WORK.mkdir(parents=True, exist_ok=True)
    table, troubles = [], []
    for name in args.sdk or SDKS:
        tools, prepare = SDKS[name]
        print(f"{name}", flush=True)
        missing = [tool for tool in tools if not shutil.which(tool)]
        said, wrong = {}, f"skipped: no {', '.join(missing)} on this machine"
        if not missing:
            try:
                said, wrong = converse(binary, name, prepare(WORK / name))
            except subprocess.CalledProcessError as error:
                wrong = f"cannot be installed: {(error.stderr or '')[-1500:]}"
            except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
                wrong = str(error)
        result = "skipped" if missing else "FAILED" if wrong else "passed"
        table.append([name, *(said.get(step, "") for step in STEPS), result])
        if wrong:
            troubles.append(f"{name}: {wrong}")
    print()
    for row in [["SDK", *STEPS, ""], *table]:
        print(f"{row[0]:35}" + "".join(f"{cell:11}" for cell in row[1:]))
    for trouble in troubles:
        print(f"\n{trouble}")
    sys.exit(bool(troubles))


if __name__ == "__main__":
    main()
