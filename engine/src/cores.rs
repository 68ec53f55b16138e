//! A list of cores, as people write it: `0-3,6`.
//! Pure, but for [`Cores::allowed`].

use crate::kernel;
use std::fmt;
use std::str::FromStr;

/// Which cores workers run on, in turn: the first worker on the first core, and from the beginning if there are more
/// workers. In the order given, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cores(Vec<usize>);

/// Cores have numbers below this: what `cpu_set_t` has room for (CPU_SET(3)).
pub const CORES_MAX: usize = 1024;

impl Cores {
    /// Those the process may use, in order (sched_getaffinity(2)). Empty if the kernel would not say.
    pub fn allowed() -> Cores {
        Cores(kernel::allowed_cores())
    }

    /// From numbers.
    ///
    /// # Errors
    /// What is wrong with them, in words.
    pub fn of(numbers: impl IntoIterator<Item = usize>) -> Result<Cores, String> {
        let mut cores = Vec::new();
        for core in numbers {
            if core >= CORES_MAX {
                return Err(format!("cores have numbers below {CORES_MAX}"));
            }
            if cores.contains(&core) {
                return Err(format!("core {core} is in it twice"));
            }
            cores.push(core);
        }
        if cores.is_empty() { Err("it names no core".into()) } else { Ok(Cores(cores)) }
    }

    /// The numbers, in order.
    pub fn as_slice(&self) -> &[usize] {
        &self.0
    }

    /// The first of these that is not among `others`.
    pub fn first_beyond(&self, others: &Cores) -> Option<usize> {
        self.0.iter().copied().find(|core| !others.0.contains(core))
    }
}

impl FromStr for Cores {
    type Err = String;

    fn from_str(text: &str) -> Result<Cores, String> {
        let number =
            |text: &str| text.trim().parse::<usize>().map_err(|_| format!("{:?} is no number of a core", text.trim()));
        let mut numbers = Vec::new();
        for part in text.split(',') {
            match part.split_once('-') {
                None => numbers.push(number(part)?),
                Some((first, last)) => {
                    let (first, last) = (number(first)?, number(last)?);
                    if first > last || last >= CORES_MAX {
                        return Err(format!("{:?} is no range of cores below {CORES_MAX}", part.trim()));
                    }
                    numbers.extend(first..=last);
                }
            }
        }
        Cores::of(numbers)
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_slice();
        let mut comma = "";
        while let [first, ..] = rest {
            let run = rest.iter().zip(*first..).take_while(|(core, next)| *core == next).count();
            match run {
                1 => write!(f, "{comma}{first}")?,
                _ => write!(f, "{comma}{first}-{}", first + run - 1)?,
            }
            (rest, comma) = (&rest[run..], ",");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written is read back, runs as ranges, in the order given.
    #[test]
    fn lists_are_read_and_written() {
        for (text, shown, numbers) in [
            ("0", "0", vec![0]),
            ("0-3", "0-3", vec![0, 1, 2, 3]),
            (" 2 , 0-1,7", "2,0-1,7", vec![2, 0, 1, 7]),
            ("3,4,5", "3-5", vec![3, 4, 5]),
            ("5-5", "5", vec![5]),
        ] {
            let cores: Cores = text.parse().unwrap();
            assert_eq!((cores.as_slice(), cores.to_string().as_str()), (&numbers[..], shown), "{text:?}");
            assert_eq!(shown.parse(), Ok(cores));
        }
    }

    /// Everything else is an error that says what is wrong.
    #[test]
    fn nonsense_is_named() {
        for (text, why) in [
            ("", "\"\" is no number of a core"),
            ("a", "\"a\" is no number of a core"),
            ("1,", "\"\" is no number of a core"),
            ("-1", "\"\" is no number of a core"),
            ("3-1", "\"3-1\" is no range of cores below 1024"),
            ("0-99999999999", "\"0-99999999999\" is no range of cores below 1024"),
            ("1024", "cores have numbers below 1024"),
            ("1,0-2", "core 1 is in it twice"),
        ] {
            assert_eq!(text.parse::<Cores>(), Err(why.into()), "{text:?}");
        }
        assert_eq!(Cores::of([]), Err("it names no core".into()));
    }

    /// What is asked for and not there is found.
    #[test]
    fn missing_cores_are_found() {
        let there: Cores = "0-1".parse().unwrap();
        assert_eq!("0,1".parse::<Cores>().unwrap().first_beyond(&there), None);
        assert_eq!("1,4,5".parse::<Cores>().unwrap().first_beyond(&there), Some(4));
    }
}
