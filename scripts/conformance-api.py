"""Starts a bridge on loopback with ports of the kernel's choice, runs schemathesis over its API, and looks at the stream of
events, which has no end that schemathesis could wait for."""

import argparse
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORK = ROOT / "target" / "conformance" / "schemathesis"
VERSION = "4.32.5"
START_S = 60
EVENTS = "/api/v1/events"


def installed():
    tool = WORK / "bin" / "schemathesis"
    if not tool.exists():
        subprocess.run([sys.executable, "-m", "venv", str(WORK)], check=True)
        pip = [str(WORK / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, f"schemathesis=={VERSION}"], check=True, timeout=1800)
    return tool


def started(binary, folder):
    """A bridge, and where its HTTP is, as it says itself."""
    config = folder / "bridge.toml"
    config.write_text(
        f'data_dir = "{folder}/data"\n[http]\nlisten = "127.0.0.1:0"\n[link]\nlisten = "127.0.0.1:0"\n'
    )
    bridge = subprocess.Popen(
        [binary, "bridge", "--config", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    found, lines = threading.Event(), []

    def read():
        for line in bridge.stderr:
            lines.append(re.sub(r"\x1b\[[0-9;]*m", "", line))
            match = re.search(r"http=(127\.0\.0\.1:\d+)", lines[-1])
            if match and "bridge is up" in lines[-1]:
                lines.insert(0, match.group(1))
                found.set()
        found.set()

    threading.Thread(target=read, daemon=True).start()
    if not found.wait(START_S) or bridge.poll() is not None:
        bridge.kill()
        sys.exit("the bridge did not start:\n" + "".join(lines[-20:]))
    return bridge, f"http://{lines[0]}", lines


def asked(url, path, method="GET", body=None, timeout=10):
    request = urllib.request.Request(url + path, method=method, headers=headers())
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    return urllib.request.urlopen(request, timeout=timeout)


def headers():
    token = os.environ.get("RINGSPAN_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def look_at_events(url):
    """An instance that comes is told to whoever listens, in the form that the document promises."""
    with asked(url, EVENTS, timeout=30) as stream:
        kind = stream.headers["Content-Type"]
        if kind != "text/event-stream":
            return [f"events: Content-Type is {kind}"]
        asked(url, "/api/v1/services/public/DEFAULT_GROUP/conformance-events/instances/DEFAULT/127.0.0.1/9", "PUT", {})
        told = {}
        for line in stream:
            key, _, value = line.decode().strip().partition(": ")
            if key:
                told[key] = value
            if told.get("data") and "conformance-events" in told["data"]:
                break
    wrong = [] if told.get("id") and told.get("event") else [f"events: {told} lacks its id or its kind"]
    try:
        asked(url, EVENTS + "?moon=1")
        wrong.append("events: an unknown parameter was taken")
    except urllib.error.HTTPError as refused:
        if refused.code != 400:
            wrong.append(f"events: an unknown parameter was answered with {refused.code}")
    return wrong


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", default=str(ROOT / "target" / "release" / "ringspan"))
    parser.add_argument("--url")
    parser.add_argument("--seconds", type=int, default=180, help="for schemathesis, installing aside")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 1_000_000)
    args = parser.parse_args()
    tool = installed()
    with tempfile.TemporaryDirectory() as folder:
        bridge, url, lines = (None, args.url, []) if args.url else started(args.binary, pathlib.Path(folder))
        try:
            wrong = look_at_events(url)
            command = [str(tool), "run", url + "/api/v1/openapi.json", "--checks", "all", "--mode", "all"]
            command += ["--phases", "examples,coverage,fuzzing,stateful", "--exclude-path", EVENTS]
            command += ["--max-time", str(args.seconds), "--seed", str(args.seed), "--continue-on-failure"]
            command += ["--request-timeout", "20", "--generation-database", "none", "--no-color"]
            command += ["--suppress-health-check", "filter_too_much,too_slow"]
            for name, value in headers().items():
                command += ["-H", f"{name}: {value}"]
            print(f"seed {args.seed}", flush=True)
            code = subprocess.run(command, cwd=folder, timeout=args.seconds + 600).returncode
            if code != 0:
                wrong.append(f"schemathesis found something (exit code {code})")
            if bridge and bridge.poll() is not None:
                wrong.append("the bridge has ended:\n" + "".join(lines[-20:]))
            if any("panicked" in line for line in lines):
                wrong.append("something panicked:\n" + "".join(line for line in lines if "panicked" in line))
        finally:
            if bridge and bridge.poll() is None:
                bridge.send_signal(signal.SIGTERM)
                try:
                    bridge.wait(30)
                except subprocess.TimeoutExpired:
                    bridge.kill()
    for text in wrong:
        print(f"FAILED {text}")
    print("FAILED" if wrong else "ok: nothing was found")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
