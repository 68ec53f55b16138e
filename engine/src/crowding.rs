//! Whether a thread finds its core taken when it has something to do.
//! Promise: one small read of a file each [`LOOK_EVERY`], by whoever asks, and none where nobody asks. Where the kernel does not say
//! (no CONFIG_SCHED_INFO, a sandbox without /proc), no thread is ever crowded.

use crate::time::Instant;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// How often the kernel is asked.
pub const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Who waited for its core for a twenty-fifth of the time is crowded. An idle core that has to be woken takes 1 to 3 us,
/// 1 to 3 % at ten thousand wake-ups a second.
const CROWDED_SHARE: u32 = 25;
/// Who was crowded is taken for it this long: what is done about it makes room, and would be undone at once.
const REMEMBERED: Duration = Duration::from_millis(500);

/// See the module. Belongs to the thread that asks first.
#[derive(Debug, Default)]
pub struct Crowding {
    /// `None` inside: there is none.
    schedstat: Option<Option<File>>,
    last: Option<(Instant, Duration)>,
    until: Instant,
}

impl Crowding {
    /// Whether the calling thread is crowded, or was a moment ago.
    pub fn is_crowded(&mut self, now: Instant) -> bool {
        if self.last.is_none_or(|(at, _)| now.since(at) >= LOOK_EVERY) {
            let file = self.schedstat.get_or_insert_with(|| File::open("/proc/thread-self/schedstat").ok());
            let waited = file.as_ref().and_then(waited).unwrap_or_default();
            self.on_look(now, waited);
        }
        now < self.until
    }

    /// By now it has waited so long in all.
    fn on_look(&mut self, now: Instant, waited: Duration) {
        let Some((at, before)) = self.last.replace((now, waited)) else { return };
        if waited.saturating_sub(before) * CROWDED_SHARE >= now.since(at) {
            self.until = now + REMEMBERED;
        }
    }
}

/// The second of "time on a core, time in wait for one, slices", in nanoseconds (Documentation/scheduler/sched-stats.rst).
fn waited(file: &File) -> Option<Duration> {
    let mut text = [0; 96];
    let n = file.read_at(&mut text, 0).ok()?;
    let text = std::str::from_utf8(&text[..n]).ok()?;
    text.split_ascii_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A twenty-fifth of the time is enough, less is not, and it is remembered for a while.
    #[test]
    fn a_twenty_fifth_is_crowded() {
        let mut crowding = Crowding::default();
        let at = |ms: u64| Instant::from_ns(ms * 1_000_000);
        for (ms, waited_ms, crowded) in [
            // What was before the first look says nothing.
            (100, 5000, false),
            (120, 5000, false),
            (140, 5001, true),
            (160, 5001, true),
            (639, 5001, true),
            (640, 5001, false),
            // A long time without a look is one span.
            (10_640, 5300, false),
            (10_660, 5301, true),
        ] {
            crowding.on_look(at(ms), Duration::from_millis(waited_ms));
            assert_eq!(at(ms) < crowding.until, crowded, "{ms}");
        }
    }

    /// The kernel says it, and says more when there is more.
    #[test]
    fn the_kernel_says_it() {
        let Ok(file) = File::open("/proc/thread-self/schedstat") else { return };
        assert!(waited(&file).is_some());
        assert!(waited(&File::open("/dev/null").expect("it is everywhere")).is_none());
        assert!(!Crowding::default().is_crowded(Instant::from_ns(1)), "by one look");
    }
}
