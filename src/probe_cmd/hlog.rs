//! The interval log that `--hlog` asks for. It is whole after every interval, whatever becomes of us.

use crate::Failure;
use ringspan_engine::hlog::IntervalLog;
use ringspan_engine::stats::Numbers;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::time::SystemTime;

/// See the module.
pub(super) struct Hlog {
    log: IntervalLog<BufWriter<File>>,
    name: String,
}

impl Hlog {
    /// Creates the file now: a path that cannot be written is known before the first probe.
    pub(super) fn create(path: &Path, groups: &[String]) -> Result<Hlog, Failure> {
        let name = path.display().to_string();
        let file = File::create(path)
            .map_err(|e| Failure::Usage(format!("--hlog {name}: {e}. Try: a path that can be written")))?;
        let log = IntervalLog::begin(BufWriter::new(file), SystemTime::now(), groups);
        let log = log.map_err(|e| cannot_write(&name, &e))?;
        Ok(Hlog { log, name })
    }

    /// Ends an interval now, with what was counted since the start.
    pub(super) fn interval(&mut self, total: &Numbers) -> Result<(), Failure> {
        self.log.write(SystemTime::now(), total).map_err(|e| cannot_write(&self.name, &e))
    }
}

fn cannot_write(name: &str, error: &std::io::Error) -> Failure {
    Failure::Run(format!("--hlog {name}: {error}. Try: a place with room"))
}
