//! Values with a unit or a form: durations, addresses, service names. One reader for flags and files.
//! Promise: an error is half a sentence that says what would be right, without the input (the caller shows that).

use ringspan_tunnel::address::Address;
use std::net::SocketAddr;
use std::time::Duration;

/// Longest service or listener name: it travels in a frame's JSON and becomes a label in metrics.
pub(crate) const NAME_BYTES_MAX: usize = 64;

/// Reads "500ms", "1s", "5m", "24h", "7d". Whole numbers only; nothing without a unit, so that nobody has to guess it.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const FORM: &str = "it needs a unit, as in 500ms, 1s or 5m";
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err("it must be a whole number with a unit, as in 500ms, 1s or 5m".into());
    }
    let ms_each: u64 = match unit.trim() {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(FORM.into()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(ms_each))
        .map(Duration::from_millis)
        .ok_or_else(|| "it is longer than 64 bits of milliseconds hold".into())
}

/// [`duration`], and within a range.
pub(crate) fn duration_within(text: &str, min: Duration, max: Duration) -> Result<Duration, String> {
    let d = duration(text)?;
    if d < min {
        Err(format!("below the minimum of {}", Shown(min)))
    } else if d > max {
        Err(format!("above the maximum of {}", Shown(max)))
    } else {
        Ok(d)
    }
}

/// Reads "64KiB", "16MiB", "1GiB", or "0".
fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    if text == "0" {
        return Ok(0);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err("it must be a whole number with a unit, as in 16MiB".into());
    }
    let Some(&(_, each)) = BYTE_UNITS.iter().find(|(name, _)| *name == unit.trim()) else {
        return Err("it needs a unit, as in 64KiB, 16MiB or 1GiB".into());
    };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(each)).ok_or_else(|| "it is more than 64 bits hold".into())
}

const BYTE_UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// Reads "64KiB", "16MiB", "1GiB", or "0", within a range.
pub(crate) fn bytes_within(text: &str, range: std::ops::RangeInclusive<u64>) -> Result<u64, String> {
    let shown = |bytes: u64| match BYTE_UNITS.iter().find(|(_, each)| bytes != 0 && bytes.is_multiple_of(*each)) {
        Some((unit, each)) => format!("{}{unit}", bytes / each),
        None => bytes.to_string(),
    };
    match bytes(text)? {
        n if n < *range.start() => Err(format!("below the minimum of {}", shown(*range.start()))),
        n if n > *range.end() => Err(format!("above the maximum of {}", shown(*range.end()))),
        n => Ok(n),
    }
}

/// A duration in the largest unit that divides it; reads back through [`duration`].
pub(crate) struct Shown(pub(crate) Duration);

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = self.0.as_millis();
        for (unit, ms_each) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)] {
            if ms != 0 && ms.is_multiple_of(ms_each) {
                return write!(f, "{}{unit}", ms / ms_each);
            }
        }
        write!(f, "{ms}ms")
    }
}

/// Reads a literal "IP:PORT". Names are refused: what a name means can change while we run.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    Err(if text.matches(':').count() > 1 && !text.starts_with('[') {
        "an IPv6 address stands in brackets, as in [::1]:8080".into()
    } else if text.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok() {
        "it has no port, as in 127.0.0.1:8080 or [::1]:8080".into()
    } else {
        match text.rsplit_once(':') {
            Some((_, port)) if port.parse::<u16>().is_err() => "its port is not a number from 0 to 65535".into(),
            _ => "it must be IP:PORT, as in 127.0.0.1:8080 or [::1]:8080".into(),
        }
    })
}

/// Reads a "host:port" that others will dial: a name is welcome here.
pub(crate) fn host_port(text: &str) -> Result<Address, String> {
    let (host, port) = text.rsplit_once(':').ok_or("it has no port, as in bridge.example.com:8024")?;
    if host.is_empty() || host.contains([' ', '/', '@']) {
        return Err("its host is not a name or address, as in bridge.example.com:8024".into());
    }
    if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
        return Err("an IPv6 address stands in brackets, as in [2001:db8::1]:8024".into());
    }
    match port.parse::<u16>() {
        Ok(1..) => text.parse().map_err(|_| "its host is not a name or address, as in bridge.example.com:8024".into()),
        _ => Err("its port is not a number from 1 to 65535".into()),
    }
}

/// Reads "Name: value".
pub(crate) fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("it must be \"Name: value\"")?;
    // A token, RFC 9110 §5.6.2.
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if name.is_empty() || !name.chars().all(is_token) {
        return Err("its name has letters, digits and - only, as in \"X-Probe: 1\"".into());
    }
    if value.contains(|c: char| c.is_control() && c != '\t') {
        return Err("its value has a control character in it".into());
    }
    Ok((name.to_owned(), value.trim().to_owned()))
}

/// Checks a service or listener name: letters, digits, `.`, `_`, `-`, at most 64; the first is a letter or digit.
pub(crate) fn service_name(text: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.is_empty() {
        Err("a name is empty".into())
    } else if text.len() > NAME_BYTES_MAX {
        Err(format!("a name has more than {NAME_BYTES_MAX} characters"))
    } else if !text.chars().all(good) {
        Err("a name has letters, digits, '.', '_' and '-' only".into())
    } else if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        Err("a name starts with a letter or a digit".into())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every form of a duration, and what is said of each that is none.
    #[test]
    fn durations() {
        for (text, ms) in
            [("0ms", 0), ("500ms", 500), ("1s", 1000), ("5m", 300_000), (" 24h ", 86_400_000), ("7d", 604_800_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for (text, say) in [
            ("", "whole number"),
            ("s", "whole number"),
            ("1", "needs a unit"),
            ("1.5s", "needs a unit"),
            ("-1s", "whole number"),
            ("1 fortnight", "needs a unit"),
            ("99999999999999999999s", "64 bits"),
            ("18446744073709551615d", "64 bits"),
        ] {
            let error = duration(text).expect_err(text);
            assert!(error.contains(say), "{text:?}: {error}");
        }
    }

    /// A shown duration reads back as the same one.
    #[test]
    fn shown_reads_back() {
        for ms in [0, 1, 999, 1000, 1500, 60_000, 90_000, 3_600_000, 86_400_000, 90_061_001] {
            let d = Duration::from_millis(ms);
            assert_eq!(duration(&Shown(d).to_string()), Ok(d));
        }
    }

    /// Addresses, and what is said of each that is none.
    #[test]
    fn addresses() {
        assert!(address("127.0.0.1:80").is_ok() && address("[::1]:80").is_ok());
        for (text, say) in [
            ("127.0.0.1", "no port"),
            ("::1", "brackets"),
            ("[::1]", "no port"),
            ("::1:x", "brackets"),
            ("127.0.0.1:99999", "0 to 65535"),
            ("localhost:80", "IP:PORT"),
            ("8080", "IP:PORT"),
            ("", "IP:PORT"),
        ] {
            let error = address(text).expect_err(text);
            assert!(error.contains(say), "{text:?}: {error}");
        }
        for (text, good) in
            [("b.example:8024", true), ("[::1]:1", true), ("::1:1", false), ("b:0", false), ("b", false), (":1", false)]
        {
            assert_eq!(host_port(text).is_ok(), good, "{text}");
        }
    }

    /// Headers, and what is said of each that is none.
    #[test]
    fn headers() {
        assert_eq!(header("X-A:  b: c "), Ok(("X-A".into(), "b: c".into())));
        for text in ["X-A", ": b", "X A: b", "X: a\r\nY: b", "é: b"] {
            assert!(header(text).is_err(), "{text}");
        }
    }

    /// Names.
    #[test]
    fn names() {
        let long = "x".repeat(65);
        for (text, good) in
            [("web", true), ("a.b_c-1", true), ("", false), ("a b", false), ("-a", false), (long.as_str(), false)]
        {
            assert_eq!(service_name(text).is_ok(), good, "{text}");
        }
    }
}
