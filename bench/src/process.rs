//! A child process under measurement: started on a core of its own, watched through /proc, killed when dropped.
//! Promise: no child outlives the bench (setpriv --pdeathsig), none is left running by an early return (Drop), and its
//! output goes to a file whose end is in every error.
//! Start processes from the main thread only: the death signal comes when the *thread* that started them ends (prctl(2)).

use ringspan_engine::kernel::{CpuOf, cpu_time};
use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Clock ticks a second in /proc/PID/stat: USER_HZ, 100 on every Linux architecture we run on (proc(5)).
const TICKS_PER_SECOND: f64 = 100.0;

/// How long a server may take to listen. Generous: the machine is saturated by the runs beside it.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a run could not go on: a sentence with its input and the next step.
pub(crate) type Failure = String;

/// A running child.
#[derive(Debug)]
pub(crate) struct Process {
    /// For messages.
    pub(crate) name: String,
    child: Child,
    log: PathBuf,
}

/// The program with its arguments, bound to this process's life and, if asked, to one core.
pub(crate) fn command(program: &Path, args: &[&str], core: Option<usize>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]);
    if let Some(core) = core {
        command.arg("taskset").arg("-c").arg(core.to_string());
    }
    command.arg(program).args(args).stdin(Stdio::null());
    command
}

/// This very program, for its hidden `child` commands.
pub(crate) fn own_program() -> PathBuf {
    std::env::current_exe().expect("Linux knows the path of a running program")
}

impl Process {
    /// Starts it; output goes to `folder/name.log` (appended: a process may be started again).
    ///
    /// # Errors
    /// The program is not there, or the log cannot be written.
    pub(crate) fn start(name: &str, mut command: Command, folder: &Path) -> Result<Process, Failure> {
        let log = folder.join(format!("{name}.log"));
        let open = || File::options().create(true).append(true).open(&log);
        let (out, err) = match (open(), open()) {
            (Ok(out), Ok(err)) => (out, err),
            (Err(e), _) | (_, Err(e)) => return Err(format!("{}: {e}", log.display())),
        };
        let child = command.stdout(out).stderr(err).spawn().map_err(|e| format!("cannot start {name}: {e}"))?;
        Ok(Process { name: name.to_owned(), child, log })
    }

    /// Starts it with a pipe from its standard output and one to its standard input, for a program that is listened to
    /// while it runs; errors go to `folder/name.log`.
    ///
    /// # Errors
    /// As [`start`](Process::start).
    pub(crate) fn start_piped(
        name: &str,
        mut command: Command,
        folder: &Path,
    ) -> Result<(Process, ChildStdout, ChildStdin), Failure> {
        let log = folder.join(format!("{name}.log"));
        let err = File::options().create(true).append(true).open(&log);
        let err = err.map_err(|e| format!("{}: {e}", log.display()))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(err);
        let mut child = command.spawn().map_err(|e| format!("cannot start {name}: {e}"))?;
        let (out, to) = (child.stdout.take(), child.stdin.take());
        let process = Process { name: name.to_owned(), child, log };
        Ok((process, out.expect("stdout is piped"), to.expect("stdin is piped")))
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// It has not within `patience`, or it ended with a code other than those in `good`; with the end of its log.
    pub(crate) fn wait_ended(&mut self, patience: Duration, good: &[i32]) -> Result<(), Failure> {
        let deadline = Instant::now() + patience;
        loop {
            match self.exited() {
                Some(status) if status.code().is_some_and(|code| good.contains(&code)) => return Ok(()),
                Some(status) => return Err(format!("{}: {status}\n{}", self.name, self.log_end())),
                None if Instant::now() > deadline => {
                    return Err(format!("{} does not end\n{}", self.name, self.log_end()));
                }
                None => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Waits until something listens there.
    ///
    /// # Errors
    /// It exited, or did not listen in time; with the end of its log.
    pub(crate) fn wait_listening(&mut self, address: SocketAddr) -> Result<(), Failure> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let connected = TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok();
            if let Some(status) = self.exited() {
                return Err(format!(
                    "{} ended ({status}) before it listened on {address}\n{}",
                    self.name,
                    self.log_end()
                ));
            }
            if connected {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("{} does not listen on {address}\n{}", self.name, self.log_end()));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// User and system time of all its threads so far, in seconds, to 10 ms.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        // The command's name may hold spaces and parentheses; the fields start after the last one (proc(5)).
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        let ticks = fields.split(' ').skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum::<u64>();
        ticks as f64 / TICKS_PER_SECOND
    }

    /// Resident memory in bytes; 0 if it is gone.
    pub(crate) fn rss_bytes(&self) -> u64 {
        self.status_kib("VmRSS:") * 1024
    }

    /// The most resident memory it has had, in bytes; 0 if it is gone.
    pub(crate) fn rss_peak_bytes(&self) -> u64 {
        self.status_kib("VmHWM:") * 1024
    }

    fn status_kib(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix(field)).unwrap_or("0");
        line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0)
    }

    /// Open descriptors; 0 if it is gone.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    /// The whole log so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last lines of its output, for an error.
    pub(crate) fn log_end(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        let end = &lines[lines.len().saturating_sub(15)..];
        format!("--- the end of {}:\n{}", self.log.display(), end.join("\n"))
    }

    /// SIGKILL, and wait until it is gone.
    pub(crate) fn kill(&mut self) {
        // Errors mean that it is gone already, which is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a child that ran to its end printed, and what it cost.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Standard output.
    pub(crate) stdout: String,
    /// User and system time, with the start of the process, in seconds (getrusage(2), RUSAGE_CHILDREN).
    pub(crate) cpu_seconds: f64,
    /// From start to end.
    pub(crate) wall: Duration,
}

/// Runs a child to its end. Not beside another child that ends meanwhile: their CPU would be one sum.
///
/// # Errors
/// It could not start, or ended with a code other than those in `good`.
pub(crate) fn run(name: &str, mut command: Command, good: &[i32]) -> Result<Finished, Failure> {
    let (cpu, started) = (cpu_time(CpuOf::Children), Instant::now());
    let output = command.output().map_err(|e| format!("cannot start {name}: {e}"))?;
    let (cpu_seconds, wall) = ((cpu_time(CpuOf::Children) - cpu).as_secs_f64(), started.elapsed());
    if !output.status.code().is_some_and(|code| good.contains(&code)) {
        let error = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{name}: {}\n{}", output.status, error.trim()));
    }
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(Finished { stdout, cpu_seconds, wall })
}

/// Waits until nobody listens there any more. A process with an io_uring is gone before its sockets are: the ring that holds
/// them is torn down by a worker of the kernel (io_uring.c, io_ring_exit_work), 5 to 40 ms later and more on a busy machine.
/// Until then whoever follows cannot have the port, and who connects is accepted by nobody.
///
/// # Errors
/// Somebody goes on listening.
pub(crate) fn until_free(address: SocketAddr) -> Result<(), Failure> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        // With SO_REUSEADDR, as std has it: connections in TIME_WAIT do not count, listeners do.
        match TcpListener::bind(address) {
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(2));
            }
            Err(e) => return Err(format!("{address} cannot be had: {e}. Another process? ss -ltnp; or --port-base N")),
        }
    }
}

/// Whether a program can be started at all.
pub(crate) fn is_there(program: &Path) -> bool {
    match Command::new(program).arg("--version").stdin(Stdio::null()).output() {
        Ok(_) => true,
        Err(e) => e.kind() != io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A child that burns half a second is charged about that, and one that sleeps is charged nothing.
    #[test]
    fn cpu_of_a_child_is_counted() {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let burn = run(
            "sh",
            command(Path::new("sh"), &["-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"], None),
            &[0],
        );
        assert!(burn.expect("sh runs").cpu_seconds > 0.0);
        let sleeper = Process::start("sleep", command(Path::new("sleep"), &["30"], Some(0)), folder.path());
        let mut sleeper = sleeper.expect("sleep starts");
        assert!(sleeper.exited().is_none());
        assert!(sleeper.descriptors() > 0 && sleeper.rss_bytes() > 0);
        sleeper.kill();
        assert!(sleeper.exited().is_some());
        assert_eq!(sleeper.descriptors(), 0);
    }

    /// A port is waited for until its listener is gone, and no longer.
    #[test]
    fn a_port_is_free_when_its_listener_is_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let visitor = TcpStream::connect(address).expect("it listens");
        let (waiting, done) = std::sync::mpsc::channel();
        let waiter = thread::spawn(move || {
            waiting.send(()).expect("the test listens");
            until_free(address)
        });
        done.recv().expect("the waiter runs");
        assert!(!waiter.is_finished(), "somebody listens");
        drop(listener);
        waiter.join().expect("no panic").expect("nobody listens");
        drop(visitor);
    }

    /// A failing child is an error that carries what it said.
    #[test]
    fn a_failure_tells_its_story() {
        let error =
            run("sh", command(Path::new("sh"), &["-c", "echo alas >&2; exit 7"], None), &[0]).expect_err("exit 7");
        assert!(error.contains("alas") && error.contains('7'), "{error}");
        assert!(run("sh", command(Path::new("sh"), &["-c", "exit 1"], None), &[0, 1]).is_ok());
    }
}
