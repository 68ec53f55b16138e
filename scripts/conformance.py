"""Installs SDKs, runs each through its script in scripts/conformance.d against a server of its own, prints a table.

An SDK's script gets the server's address as its argument, prints `OK step` for each step, and `RESTART` when the server is to
be killed and started again on the same data; a line on its standard input says that it is back. Exit code 0: it passed.
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
# From its start to its end, installing aside; Java's and Go's clients wait up to 10 s before they connect anew.
PATIENCE_S = 180
INSTALL_S = 1800


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
    "node-2.6.3": node("2.6.3"),
    "go-2.3.5": go(),
    "java-2.5.1": java(),
}


def free_ports():
    """An HTTP port whose gRPC port is free too, and one for the link. Below the range that the kernel gives out."""
    for port in range(24000, 24400, 4):
        try:
            for p in (port, port + 1000, port + 1):
                with socket.socket() as s:
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    s.bind(("127.0.0.1", p))
            return port
        except OSError:
            continue
    sys.exit("no free port from 24000 to 24400")


class Server:
    """`BINARY bridge` on data of its own."""

    def __init__(self, binary, folder):
        self.binary, self.folder, self.port = binary, folder, free_ports()
        self.address = f"127.0.0.1:{self.port}"
        (folder / "bridge.toml").write_text(
            f'data_dir = "{folder}/data"\n[http]\nlisten = "{self.address}"\n[link]\nlisten = "127.0.0.1:{self.port + 1}"\n')
        self.process = None

    def start(self):
        log = open(self.folder / "server.log", "a", encoding="utf-8")
        self.process = subprocess.Popen([self.binary, "bridge", "--config", self.folder / "bridge.toml"],
                                        stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(f"http://{self.address}/nacos/v1/console/health/readiness", timeout=2):
                    return
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise RuntimeError(f"the server does not come up: {(self.folder / 'server.log').read_text()[-2000:]}")
                time.sleep(0.05)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def converse(binary, command):
    """Runs one SDK's script; the steps it passed, and what went wrong."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        server = Server(binary, folder)
        server.start()
        steps = []
        errors = open(folder / "errors", "w+", encoding="utf-8")
        sdk = subprocess.Popen([str(c) for c in command] + [server.address], cwd=folder, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        watchdog = threading.Timer(PATIENCE_S, sdk.kill)
        watchdog.start()
        try:
            for line in sdk.stdout:
                if line.startswith("OK "):
                    steps.append(line[3:].strip())
                    print(f"      {steps[-1]}", flush=True)
                elif line.startswith("RESTART"):
                    server.kill()
                    server.start()
                    sdk.stdin.write("back\n")
                    sdk.stdin.flush()
            code = sdk.wait()
        finally:
            watchdog.cancel()
            sdk.kill()
            server.kill()
        errors.seek(0)
        wrong = None if code == 0 else f"exit code {code} after {len(steps)} steps: {errors.read()[-1500:].strip()}"
        if wrong:
            wrong += f"\n--- server ---\n{(folder / 'server.log').read_text()[-1500:]}"
        return steps, wrong


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "ringspan"))
    parser.add_argument("--list", action="store_true")
    parser.add_argument("sdk", nargs="*")
    args = parser.parse_args()
    if args.list:
        print("\n".join(SDKS))
        return
    unknown = [name for name in args.sdk if name not in SDKS]
    if unknown:
        sys.exit(f"no such SDK: {', '.join(unknown)}. Try: scripts/conformance --list")
    binary = os.path.abspath(args.binary)
    if not os.access(binary, os.X_OK):
        sys.exit(f"{binary}: no such program. Try: cargo build --release, or --binary PATH")
    table = []
    for name in args.sdk or SDKS:
        tools, prepare = SDKS[name]
        print(f"{name}", flush=True)
        missing = [tool for tool in tools if not shutil.which(tool)]
        if missing:
            table.append((name, "skipped", f"no {', '.join(missing)} on this machine"))
            continue
        try:
            WORK.mkdir(parents=True, exist_ok=True)
            command = prepare(WORK / name)
            steps, wrong = converse(binary, command)
        except subprocess.CalledProcessError as error:
            steps, wrong = [], f"cannot be installed: {(error.stderr or '')[-1500:]}"
        except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
            steps, wrong = [], str(error)
        table.append((name, "FAILED" if wrong else "passed", wrong or f"{len(steps)} steps"))
    print()
    for name, result, remark in table:
        print(f"{name:32} {result:8} {remark}")
    sys.exit(any(result != "passed" for _, result, _ in table))


if __name__ == "__main__":
    main()
