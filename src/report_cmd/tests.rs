//! Claim: a report shows what is in its logs, is well formed, loads nothing, and a file that is no log is named with its
//! line. Method: logs of the engine's own writer, and texts by hand.

use super::read::{LATENESS, RTT, row_begin, row_of};
use super::*;
use ringspan_engine::hlog::IntervalLog;
use ringspan_engine::stats::Numbers;
use std::time::{Duration, SystemTime};

fn log(seconds: u64) -> String {
    let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1_763_768_412);
    let mut bytes = Vec::new();
    let mut log = IntervalLog::begin(&mut bytes, begin, &["a<b".to_owned()]).expect("memory");
    let mut numbers = Numbers::default();
    for second in 1..=seconds {
        for n in 0..200 {
            numbers.rtt.record(100 + n * second).expect("in range");
            numbers.lateness.record(5 + n / 10).expect("in range");
        }
        log.write(begin + Duration::from_secs(second), &numbers).expect("memory");
    }
    String::from_utf8(bytes).expect("text")
}

fn data(text: String) -> Data {
    Data::of(&[(Path::new("run.hlog"), text)]).unwrap_or_else(|e| panic!("{e}"))
}

/// Opening and closing tags pair up, attributes are quoted: enough of XML to know that a reader will not stumble.
fn is_well_formed(text: &str) {
    let mut open: Vec<&str> = Vec::new();
    for tag in text.split('<').skip(1).map(|rest| rest.split('>').next().expect("there is a first")) {
        assert!(tag.matches('"').count().is_multiple_of(2), "{tag}");
        let name = tag.trim_start_matches('/').split([' ', '/', '\n']).next().unwrap_or_default();
        if tag.starts_with('!') || matches!(name, "meta") || tag.ends_with('/') {
            continue;
        }
        match tag.strip_prefix('/') {
            Some(_) => assert_eq!(open.pop(), Some(name), "in <{tag}>"),
            None => open.push(name),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

/// Both outputs are well formed, load nothing, and have what they promise.
#[test]
fn pictures_are_whole() {
    for seconds in [1, 2, 60, 500] {
        let data = data(log(seconds));
        let title = "Web & <db>";
        let (svg, html) = (svg::document(&data, title), html::document(&data, title));
        for text in [&svg, &html] {
            is_well_formed(text);
            assert!(text.contains("Web &amp; &lt;db&gt;") && !text.contains("<db>"));
            let loads = text.replace("http://www.w3.org/2000/svg", "");
            assert!(
                !loads.contains("http") && !loads.contains("src=") && !loads.contains("url(") && !loads.contains("NaN")
            );
            for say in [
                "Percentiles",
                "Round trip over time",
                "Lateness of the prober",
                "99 %",
                "p99",
                "prefers-color-scheme:dark",
            ] {
                assert!(text.contains(say), "{say}");
            }
            assert!(text.contains("class=\"h9\""), "the fullest cell has the darkest shade");
        }
        assert!(html.contains("<th scope=\"row\">round trip</th>") && html.contains("p99.9"));
        assert!(data.columns.len() <= super::read::COLUMNS_MAX && data.length == Duration::from_secs(seconds));
        assert_eq!(data.tags[RTT].len(), 200 * seconds);
        assert_eq!(data.tags[LATENESS].max(), 24);
        assert!(data.subtitle().starts_with("2025-11-21 23:40:12 UTC, "), "{}", data.subtitle());
    }
}

/// Two logs are drawn together, each with a curve of its own; and the sum is the sum.
#[test]
fn two_logs() {
    let both = [(Path::new("d/mon.hlog"), log(3)), (Path::new("d/tue.hlog"), log(5))];
    let data = Data::of(&both).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(data.tags.keys().collect::<Vec<_>>(), ["lateness", "rtt", "rtt of mon", "rtt of tue"]);
    assert_eq!(data.tags[RTT].len(), 1600);
    assert_eq!(data.title(), "Probes: mon, tue");
}

/// What is no interval log, and what is said of it.
#[test]
fn foreign_files() {
    let good = log(1);
    let cut: String =
        good.lines().map(|l| if l.contains("HIST") { &l[..l.len() - 20] } else { l }).collect::<Vec<_>>().join("\n");
    for (text, say) in [
        ("", "run.hlog: there is no interval in it. Try: a file of probe --hlog"),
        ("# a comment\n\n", "there is no interval in it"),
        ("hello\nworld\n", "run.hlog:1: not the four fields of an interval"),
        ("#x\n1,2,3,!!!\n", "run.hlog:2: what should be a histogram is no base64"),
        ("1,2,3,AAAA\n", "run.hlog:1: the histogram cannot be read"),
        ("Tag=a\n", "run.hlog:1: a tag and nothing else"),
        ("x,2,3,AAAA\n", "run.hlog:1: \"x\" is no time in seconds"),
        ("NaN,2,3,AAAA\n", "is no time in seconds"),
        ("<html><body>no</body></html>", "not the four fields"),
        (cut.as_str(), "run.hlog:"),
    ] {
        let error = Data::of(&[(Path::new("run.hlog"), text.to_owned())]).err().unwrap_or_else(|| panic!("{text}"));
        assert!(error.contains(say), "{text:?}: {error}");
    }
}

/// A time stands in the row that holds it.
#[test]
fn rows_hold_their_times() {
    for us in [1, 2, 9, 10, 999, 1000, 123_456, 59_999_999] {
        let row = row_of(us);
        assert!(row_begin(row) <= us as f64 * 1.000_001 && row_begin(row + 1) >= us as f64 * 0.999_999, "{us}");
    }
    assert_eq!(row_of(u64::MAX), super::read::ROWS - 1);
}
