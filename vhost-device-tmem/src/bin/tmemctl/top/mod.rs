// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The live view.
//!
//! ```text
//! daemon ── sample ─┐
//! keys ─────────────┼── model ── draw ── screen, or text
//! host's pressure ──┘
//! ```
//!
//! The model knows nothing of terminals, and drawing decides nothing.

mod draw;
mod model;
mod pressure;
mod screen;

use std::{
    env,
    io::{self, IsTerminal},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use vhost_device_tmem::control::{Client, ClientError};

use crate::{args::Output, failure::Failure, print, print_json};
use draw::{Palette, View};
use model::{Key, Model, Sample, Sort};
use screen::Screen;

/// How long the daemon may take to answer: whoever looks wants to go on doing so.
const PATIENCE: Duration = Duration::from_secs(2);

/// What to show, and how.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Options {
    /// Seconds between two looks at the daemon.
    #[arg(long, value_name = "SECS", default_value_t = 2,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,

    /// What the guests are sorted by.
    #[arg(long, value_name = "KEY", value_enum, default_value_t)]
    sort: Sort,

    /// Print one frame as text, for which the daemon is looked at twice.
    #[arg(long)]
    once: bool,

    #[command(flatten)]
    pub(crate) output: Output,

    /// For tests: panic once the screen is there.
    #[arg(long, hide = true)]
    fault_panic: bool,
}

/// Shows the guests until the operator has seen enough.
///
/// # Errors
///
/// [`Failure`]; a daemon that goes away meanwhile is none, and may come back.
pub(crate) fn run(path: &Path, options: &Options) -> Result<(), Failure> {
    let begin = Instant::now();
    let mut model = Model::new(options.sort);
    // Where there is no daemon at the beginning, the path is wrong, most likely.
    model.observe(sample(path, begin)?);
    if options.once || options.output.json {
        return print_frames(path, options, begin, model);
    }
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(Failure::NoTerminal);
    }
    live(path, options, begin, model)
}

fn sample(path: &Path, begin: Instant) -> Result<Sample, ClientError> {
    Ok(Sample {
        stat: Client::with_patience(path, PATIENCE)?.stat()?,
        pressure: pressure::read(),
        at: begin.elapsed(),
    })
}

/// Prints what the second look shows, and all others, as JSON or one frame.
fn print_frames(
    path: &Path,
    options: &Options,
    begin: Instant,
    mut model: Model,
) -> Result<(), Failure> {
    loop {
        thread::sleep(Duration::from_secs(options.interval));
        model.observe(sample(path, begin)?);
        if options.output.json {
            print_json(&model.figures())?;
        } else {
            print(draw::text(&model, draw::NARROW))?;
        }
        if options.once {
            return Ok(());
        }
    }
}

fn live(path: &Path, options: &Options, begin: Instant, mut model: Model) -> Result<(), Failure> {
    let palette = Palette::new(env::var_os("NO_COLOR").as_deref());
    let interval = Duration::from_secs(options.interval);
    let screen = Screen::enter()?;
    let mut next = Instant::now() + interval;
    loop {
        screen.draw(|frame| {
            let area = frame.area();
            model.fit(draw::rows(area.height));
            let model = &model;
            frame.render_widget(View { model, palette }, area);
        })?;
        assert!(!options.fault_panic, "on purpose");
        if event::poll(next.saturating_duration_since(Instant::now()))? {
            if let Event::Key(pressed) = event::read()? {
                match key(pressed) {
                    Some(Key::Quit) => return Ok(()),
                    Some(key) => model.pressed(key),
                    None => {}
                }
            }
        }
        if Instant::now() >= next {
            match sample(path, begin) {
                Ok(sample) => model.observe(sample),
                Err(error) => model.lost(&error.to_string()),
            }
            next = Instant::now() + interval;
        }
    }
}

/// Returns what a key is for.
fn key(pressed: KeyEvent) -> Option<Key> {
    if pressed.kind == KeyEventKind::Release {
        return None;
    }
    if pressed.modifiers.contains(KeyModifiers::CONTROL) {
        return (pressed.code == KeyCode::Char('c')).then_some(Key::Quit);
    }
    match pressed.code {
        KeyCode::Char('q') | KeyCode::Esc => Some(Key::Quit),
        KeyCode::Char('r') => Some(Key::Reverse),
        KeyCode::Char(letter) => Sort::by_letter(letter).map(Key::Sort),
        KeyCode::Up => Some(Key::Up),
        KeyCode::Down => Some(Key::Down),
        KeyCode::PageUp => Some(Key::PageUp),
        KeyCode::PageDown => Some(Key::PageDown),
        KeyCode::Home => Some(Key::Home),
        _ => None,
    }
}
