//! What no client sends, from a seed: bytes, texts and JSON for tests of whatever takes input from outside.
//! `SIM_SEED=n` replays one seed; `HOSTILE_SECONDS=n` goes on with ever new ones for so long. Otherwise: 64 seeds.

use serde_json::{Map, Value, json};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The seeds of a run.
pub(crate) fn seeds() -> Box<dyn Iterator<Item = u64>> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("it is a number"));
    match (number("SIM_SEED"), number("HOSTILE_SECONDS")) {
        (Some(seed), _) => Box::new(std::iter::once(seed)),
        (None, Some(seconds)) => {
            let end = Instant::now() + Duration::from_secs(seconds);
            Box::new((0..).take_while(move |_| Instant::now() < end))
        }
        (None, None) => Box::new(0..64),
    }
}

/// Says how to replay a seed, if its test panics.
pub(crate) struct Replay(pub(crate) u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay with SIM_SEED={}", self.0);
        }
    }
}

/// Panics of any thread so far: those of spawned tasks would otherwise be nobody's.
pub(crate) fn panics() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            COUNT.fetch_add(1, Ordering::Relaxed);
            before(info);
        }));
    });
    COUNT.load(Ordering::Relaxed)
}

/// A source of choices.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// splitmix64 (Steele, Lea, Flood 2014).
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(n).expect("it fits")).expect("it fits")
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    pub(crate) fn bytes(&mut self, len_max: usize) -> Vec<u8> {
        (0..self.below(len_max + 1)).map(|_| self.next().to_le_bytes()[0]).collect()
    }

    /// Spoils some bytes: flips, cuts, repeats.
    pub(crate) fn spoil(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len().max(1));
            match self.below(4) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                1 => bytes.truncate(at),
                2 if !bytes.is_empty() => bytes.insert(at, 0xff),
                _ => bytes.extend_from_within(at..),
            }
        }
        bytes
    }

    pub(crate) fn text(&mut self) -> String {
        const EDGES: [&str; 40] = [
            "",
            " ",
            "0",
            "-0",
            "-1",
            "1e400",
            "NaN",
            "inf",
            "65535",
            "65536",
            "18446744073709551616",
            "true",
            "None",
            "null",
            "{}",
            "[]",
            "{",
            "\"",
            "\\",
            "\0",
            "\u{feff}",
            "\u{202e}",
            "é",
            "💥",
            "@@",
            "a@@",
            "@@a",
            "a@@b@@c",
            "..",
            "/",
            "%00",
            "::1",
            "0.0.0.0",
            "255.255.255.255",
            "127.0.0.1",
            "::ffff:1.2.3.4",
            "fe80::1%lo",
            "DEFAULT,DEFAULT",
            ",,,",
            "k=v,=,k",
        ];
        match self.below(8) {
            0 => "x".repeat(self.below(3_000)),
            1 => String::from_utf8_lossy(&self.bytes(24)).into_owned(),
            2 => self.json(3).to_string(),
            3 => self.one_of(&["web", "db", "DEFAULT", "DEFAULT_GROUP", "public", "10.0.0.1", "80"]).to_owned(),
            _ => self.one_of(&EDGES).to_owned(),
        }
    }

    pub(crate) fn json(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 6 } else { 9 }) {
            0 => Value::Null,
            1 => self.one_in(2).into(),
            2 => self.next().into(),
            3 => json!(f64::from_bits(self.next())),
            4 => self.one_of(&[-1_i64, 0, 1, 80, 65_536, i64::MIN, i64::MAX]).into(),
            5 => self.text().into(),
            6 => (0..self.below(4)).map(|_| self.json(depth - 1)).collect::<Vec<_>>().into(),
            7 => (0..self.below(4)).map(|_| (self.text(), self.json(depth - 1))).collect::<Map<_, _>>().into(),
            // As deep as a parser is ready to go, and deeper.
            _ => (0..self.below(200)).fold(Value::Null, |inner, _| vec![inner].into()),
        }
    }
}
