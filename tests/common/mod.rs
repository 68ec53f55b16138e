//! What the end-to-end tests share: the real binary as a child process, and waits that end with an event or a deadline.
#![allow(dead_code, reason = "each test file uses its part of it")]

pub(crate) mod doors;
pub(crate) mod frames;
pub(crate) mod load;
pub(crate) mod origin;
pub(crate) mod site;
pub(crate) mod world;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Longest wait for anything: no claim about speed, only the end of patience on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Room for the thousands of sockets that some tests hold: the soft limit is often 1024.
pub(crate) fn raise_nofile() {
    let limit = ringspan_engine::kernel::facts::raise_nofile().expect("the soft limit may be raised");
    assert!(limit.soft >= 12_000, "the hard limit on open files is {}: ulimit -Hn", limit.soft);
}

/// The binary under test, ready for arguments: `RINGSPAN`, if it is set, or the one that was built with the test.
/// `RINGSPAN_TEST_IO_TIER` in the environment of the tests is its `RINGSPAN_IO_TIER`: all of them on an older kernel's
/// interface.
pub(crate) fn ringspan(args: &[&str]) -> Command {
    let built = || env!("CARGO_BIN_EXE_ringspan").into();
    let mut command = Command::new(std::env::var_os("RINGSPAN").unwrap_or_else(built));
    command.args(args).env_remove("RINGSPAN_LOG").env_remove("RINGSPAN_IO_TIER");
    if let Some(tier) = std::env::var_os("RINGSPAN_TEST_IO_TIER") {
        command.env("RINGSPAN_IO_TIER", tier);
    }
    command
}

/// Runs to the end. Panics if it takes longer than [`PATIENCE`].
pub(crate) fn run(args: &[&str], folder: &Path) -> Output {
    run_with(ringspan(args).current_dir(folder), "")
}

/// As [`run`], with something on stdin.
pub(crate) fn run_with(command: &mut Command, stdin: &str) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spawned");
    // A program that does not read its stdin may be gone already.
    let _ = child.stdin.take().expect("piped").write_all(stdin.as_bytes());
    let read = |from: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            from.expect("piped").read_to_end(&mut bytes).expect("a pipe reads");
            bytes
        })
    };
    let out = read(child.stdout.take().map(|p| Box::new(p) as Box<dyn Read + Send>));
    let err = read(child.stderr.take().map(|p| Box::new(p) as Box<dyn Read + Send>));
    let status = wait_exit(&mut child);
    Output { status, stdout: out.join().expect("no panic"), stderr: err.join().expect("no panic") }
}

/// Exit code, stdout and stderr as text.
pub(crate) fn parts(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn wait_exit(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("our own child") {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("the process did not end in {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Asks again and again until there is an answer, or panics with `what` at the deadline.
pub(crate) fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A long-running process whose lines (stdout and stderr together) can be waited for. Killed on drop.
pub(crate) struct Running {
    child: Child,
    lines: Arc<(Mutex<Vec<String>>, Condvar)>,
}

impl Running {
    /// Starts it.
    pub(crate) fn start(command: &mut Command) -> Running {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spawned");
        let lines = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let out: Box<dyn Read + Send> = Box::new(child.stdout.take().expect("piped"));
        let err: Box<dyn Read + Send> = Box::new(child.stderr.take().expect("piped"));
        for from in [out, err] {
            let lines = lines.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(from).lines().map_while(Result::ok) {
                    lines.0.lock().expect("no panic").push(line);
                    lines.1.notify_all();
                }
            });
        }
        Running { child, lines }
    }

    /// Waits for a line with all of `needles`, from line `from` on; its number and text.
    pub(crate) fn wait_line_from(&self, from: usize, needles: &[&str]) -> (usize, String) {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.lines.0.lock().expect("no panic");
        loop {
            let hit = lines.iter().enumerate().skip(from).find(|(_, l)| needles.iter().all(|n| l.contains(n)));
            if let Some((number, line)) = hit {
                return (number, line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited {PATIENCE:?} for a line with {needles:?} in\n{}", lines.join("\n"));
            lines = self.lines.1.wait_timeout(lines, left).expect("no panic").0;
        }
    }

    /// Waits for a line with all of `needles`.
    pub(crate) fn wait_line(&self, needles: &[&str]) -> String {
        self.wait_line_from(0, needles).1
    }

    /// How many lines there are by now.
    pub(crate) fn line_count(&self) -> usize {
        self.lines.0.lock().expect("no panic").len()
    }

    /// All lines so far.
    pub(crate) fn text(&self) -> String {
        self.lines.0.lock().expect("no panic").join("\n")
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name, as in "INT".
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status();
        assert!(sent.expect("kill is there").success());
    }

    /// SIGKILL, and reaps it.
    pub(crate) fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its exit code if it has ended, -1 for a signal.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        self.child.try_wait().expect("our own child").map(|status| status.code().unwrap_or(-1))
    }

    /// Waits for its end; the exit code, -1 for a signal.
    pub(crate) fn wait(&mut self) -> i32 {
        wait_exit(&mut self.child).code().unwrap_or(-1)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {:?} said:\n{}", self.child, self.text());
        }
    }
}
