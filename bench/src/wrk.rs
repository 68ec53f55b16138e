//! wrk, and what it prints.

use crate::process::{self, Failure};
use std::net::SocketAddr;
use std::path::Path;

/// One run's figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Figures {
    /// Requests answered.
    pub(crate) requests: u64,
    /// Per second.
    pub(crate) requests_per_s: f64,
    /// Half of the requests took at most this.
    pub p50_ms: f64,
    /// 99 of 100.
    pub p99_ms: f64,
    /// Connects, reads, writes and timeouts that failed, and answers other than 2xx and 3xx.
    pub(crate) errors: u64,
}

/// Loads `http://entry/` for some seconds over so many connections, from so many threads. `fresh`: a connection for each request.
///
/// # Errors
/// wrk is not installed, or prints something else.
pub(crate) fn run(
    entry: SocketAddr,
    connections: usize,
    threads: usize,
    seconds: u64,
    fresh: bool,
) -> Result<Figures, Failure> {
    let url = format!("http://{entry}/");
    let (connections, duration) = (format!("-c{connections}"), format!("-d{seconds}s"));
    let threads = format!("-t{threads}");
    let mut args = vec![threads.as_str(), &connections, &duration, "--latency"];
    if fresh {
        args.extend(["-H", "Connection: close"]);
    }
    args.push(&url);
    execute(&args)
}

/// Loads `http://entry` for some seconds with the requests that a Lua script makes, on kept connections.
///
/// # Errors
/// As [`run`].
pub(crate) fn run_script(
    entry: SocketAddr,
    connections: usize,
    seconds: u64,
    script: &Path,
) -> Result<Figures, Failure> {
    let (url, script) = (format!("http://{entry}"), script.to_string_lossy());
    let (connections, duration) = (format!("-c{connections}"), format!("-d{seconds}s"));
    execute(&["-t1", &connections, &duration, "--latency", "-s", &script, &url])
}

fn execute(args: &[&str]) -> Result<Figures, Failure> {
    let output = process::run("wrk", process::command(Path::new("wrk"), args, None), &[0])?.stdout;
    parse(&output).ok_or_else(|| format!("wrk printed something else:\n{output}"))
}

fn milliseconds(text: &str) -> Option<f64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let number: f64 = text[..split].parse().ok()?;
    Some(
        number
            * match &text[split..] {
                "us" => 1e-3,
                "ms" => 1.0,
                "s" => 1e3,
                "m" => 60e3,
                _ => return None,
            },
    )
}

fn parse(output: &str) -> Option<Figures> {
    let lines = || output.lines().map(str::trim);
    let after = |prefix: &str| lines().find_map(|l| l.strip_prefix(prefix)).map(str::trim);
    let requests = lines().find(|l| l.contains(" requests in "))?.split(' ').next()?.parse().ok()?;
    // "Socket errors: connect 0, read 3, write 0, timeout 1", only if there were any.
    let socket_errors: u64 = after("Socket errors:")
        .map_or(0, |text| text.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u64>().ok()).sum());
    let bad_answers = after("Non-2xx or 3xx responses:").map_or(Some(0), |n| n.parse().ok())?;
    Some(Figures {
        requests,
        requests_per_s: after("Requests/sec:")?.parse().ok()?,
        p50_ms: milliseconds(after("50%")?)?,
        p99_ms: milliseconds(after("99%")?)?,
        errors: socket_errors + bad_answers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The two shapes of wrk's report, with and without errors.
    #[test]
    fn reports_are_read() {
        let good = "Running 5s test @ http://127.0.0.1:8080/\n  1 threads and 64 connections\n  Thread Stats   Avg      \
                    Stdev     Max   +/- Stdev\n    Latency   600.00us  100.00us  10.00ms   90.00%\n    Req/Sec   104.00k\n  \
                    Latency Distribution\n     50%  600.00us\n     75%  1.00ms\n     90%  1.10ms\n     99%    1.25s \n  \
                    525000 requests in 5.00s, 80.00MB read\nRequests/sec: 105000.12\nTransfer/sec:     16.00MB\n";
        let figures = parse(good).expect("a good report");
        let expected =
            Figures { requests: 525_000, requests_per_s: 105_000.12, p50_ms: 0.6, p99_ms: 1250.0, errors: 0 };
        assert_eq!(figures, expected);
        let bad = good.replace(
            "Requests/sec",
            "  Socket errors: connect 1, read 20, write 300, timeout 4000\n  Non-2xx or 3xx responses: 7\nRequests/sec",
        );
        assert_eq!(parse(&bad).expect("a bad report").errors, 4328);
        assert_eq!(parse("unable to connect"), None);
    }
}
