//! `ringspan report`: interval logs in, one picture or page out.
//!
//! ```text
//! files ──read──► Data (histograms by tag, columns over time) ──┬─ svg ──► --svg
//!                                                               └─ html (the same picture, and a table) ──► --html
//! ```

mod axis;
mod html;
mod read;
mod svg;

use crate::{Ending, Failure, cli};
use read::Data;
use std::path::Path;

/// Runs the subcommand.
pub(crate) fn run(args: &cli::Report) -> Result<Ending, Failure> {
    let data = Data::read(&args.files).map_err(Failure::Run)?;
    let title = args.title.clone().unwrap_or_else(|| data.title());
    let save = |path: &Path, text: &str| {
        std::fs::write(path, text)
            .map_err(|e| Failure::Usage(format!("{}: {e}. Try: a path that can be written", path.display())))
    };
    if let Some(path) = &args.svg {
        save(path, &svg::document(&data, &title))?;
    }
    if let Some(path) = &args.html {
        save(path, &html::document(&data, &title))?;
    }
    crate::say(&data.text());
    Ok(Ending::Good)
}

/// For `<`, `&` and quotes in what others wrote.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests;
