//! The terminal while the live table is on it: raw, on its alternate screen, with a thread that reads keys.
//! Promise: however the run ends (key, signal, panic), the terminal is as it was.

use super::view::{Line, Look};
use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use crossterm::style::{Attribute, Color, Print, ResetColor, SetAttribute, SetForegroundColor};
use crossterm::terminal::{self, Clear, ClearType};
use crossterm::{cursor, execute, queue};
use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// Keys that may wait: nobody types faster than the table is drawn.
const KEYS_MAX: usize = 64;
/// How soon the reading thread notices that it is not needed.
const POLL: Duration = Duration::from_millis(100);

/// What somebody at the terminal wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Quit,
    Sort,
    /// So many rows down, or up.
    Scroll(isize),
    /// So many screens down, or up.
    Page(isize),
    Top,
    Bottom,
    /// The window has another size.
    Resize,
}

/// See the module.
pub(super) struct Screen {
    is_over: Arc<AtomicBool>,
    keys: Option<mpsc::Receiver<Key>>,
}

impl Screen {
    /// Takes the terminal over.
    pub(super) fn open() -> io::Result<Screen> {
        terminal::enable_raw_mode()?;
        let is_over = Arc::new(AtomicBool::new(false));
        let (to, keys) = mpsc::channel(KEYS_MAX);
        let screen = Screen { is_over: is_over.clone(), keys: Some(keys) };
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            before(info);
        }));
        execute!(io::stdout(), terminal::EnterAlternateScreen, cursor::Hide)?;
        std::thread::Builder::new().name("keys".into()).spawn(move || read_keys(&is_over, &to))?;
        Ok(screen)
    }

    /// Where keys come out; once.
    pub(super) fn keys(&mut self) -> Option<mpsc::Receiver<Key>> {
        self.keys.take()
    }

    /// Columns and lines.
    pub(super) fn size() -> (u16, u16) {
        terminal::size().unwrap_or((80, 24))
    }

    /// Shows a frame.
    pub(super) fn draw(&self, lines: &[Line]) -> io::Result<()> {
        let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
        queue!(out, terminal::BeginSynchronizedUpdate)?;
        for (y, line) in lines.iter().enumerate() {
            queue!(out, cursor::MoveTo(0, y as u16))?;
            match line.look {
                Look::Plain => {}
                Look::Title => queue!(out, SetAttribute(Attribute::Reverse))?,
                Look::Dim => queue!(out, SetAttribute(Attribute::Dim))?,
                Look::Good => queue!(out, SetForegroundColor(Color::Green))?,
                Look::Bad => queue!(out, SetForegroundColor(Color::Red), SetAttribute(Attribute::Bold))?,
                Look::Doubt => queue!(out, SetForegroundColor(Color::Yellow))?,
            }
            queue!(out, Print(&line.text), ResetColor, SetAttribute(Attribute::Reset), Clear(ClearType::UntilNewLine))?;
        }
        queue!(out, terminal::EndSynchronizedUpdate)?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        restore();
    }
}

fn restore() {
    // A terminal that is gone needs no restoring.
    let _ = execute!(io::stdout(), terminal::LeaveAlternateScreen, cursor::Show);
    let _ = terminal::disable_raw_mode();
}

fn read_keys(is_over: &AtomicBool, to: &mpsc::Sender<Key>) {
    while !is_over.load(Ordering::Relaxed) {
        let key = match event::poll(POLL) {
            Ok(false) => continue,
            Ok(true) => event::read().ok().and_then(|event| key(&event)),
            // No keys, no hurry: signals still end the run.
            Err(_) => return,
        };
        if let Some(key) = key {
            // A full queue: somebody sleeps on a key. The first ones say enough.
            let _ = to.try_send(key);
        }
    }
}

fn key(event: &Event) -> Option<Key> {
    let key = match event {
        Event::Resize(..) => return Some(Key::Resize),
        Event::Key(key) if key.kind != KeyEventKind::Release => key,
        _ => return None,
    };
    Some(match key.code {
        KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => Key::Quit,
        KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
        KeyCode::Char('s') => Key::Sort,
        KeyCode::Up | KeyCode::Char('k') => Key::Scroll(-1),
        KeyCode::Down | KeyCode::Char('j') => Key::Scroll(1),
        KeyCode::PageUp => Key::Page(-1),
        KeyCode::PageDown | KeyCode::Char(' ') => Key::Page(1),
        KeyCode::Home | KeyCode::Char('g') => Key::Top,
        KeyCode::End | KeyCode::Char('G') => Key::Bottom,
        _ => return None,
    })
}
