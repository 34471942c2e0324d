// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Drawing the model: on a terminal, or as text.

use std::ffi::OsStr;

use ratatui::{
    buffer::Buffer,
    layout::{Alignment, Constraint, Layout, Position, Rect},
    style::{Color, Modifier, Style},
    text::Line,
    widgets::{Paragraph, RenderDirection, Sparkline, Widget},
};
use vhost_device_tmem::control::part;

use super::model::{History, Model, Row, Scale, Shared, Sort};
use crate::{
    figures::State,
    tables::{mib, percent, NONE},
};

/// Columns that are always enough.
pub(super) const NARROW: u16 = 80;

/// Lines above the guests, and below.
const HEADS: u16 = 5;
const FEET: u16 = 1;

/// The columns of numbers, with their heads and units; what is left over is for the sparklines.
const COLUMNS: [(&str, &str, u16, Option<Sort>); 9] = [
    ("GUEST", "", 12, Some(Sort::Name)),
    ("MEMORY", "MiB", 8, Some(Sort::Memory)),
    ("PUT", "/s", 7, Some(Sort::Puts)),
    ("REFUSED", "%", 7, Some(Sort::Refused)),
    ("GOT", "/s", 7, Some(Sort::Gets)),
    ("HIT", "%", 5, None),
    ("HITS", "", 0, Some(Sort::Hits)),
    ("MISSES", "", 0, Some(Sort::Misses)),
    ("MEMORY", "", 0, None),
];

/// Styles, with colours or without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Palette {
    hits: Style,
    misses: Style,
    memory: Style,
    trouble: Style,
    quiet: Style,
}

impl Palette {
    /// The palette where NO_COLOR has this value: any but an empty one asks for no colours.
    pub(super) fn new(no_color: Option<&OsStr>) -> Self {
        if no_color.is_some_and(|value| !value.is_empty()) {
            return Self {
                quiet: Style::new().add_modifier(Modifier::DIM),
                ..Self::default()
            };
        }
        let color = |color| Style::new().fg(color);
        Self {
            hits: color(Color::Green),
            misses: color(Color::Red),
            memory: color(Color::Cyan),
            trouble: color(Color::Red),
            quiet: color(Color::DarkGray),
        }
    }
}

/// Returns how many guests are shown in so many lines.
pub(super) fn rows(height: u16) -> usize {
    height.saturating_sub(HEADS + FEET).into()
}

/// Returns a frame as text, as high as it takes.
pub(super) fn text(model: &Model, width: u16) -> String {
    let mut model = model.clone();
    let rows = u16::try_from(model.guests()).unwrap_or(u16::MAX);
    let height = HEADS.saturating_add(rows);
    model.fit(rows.into());
    let palette = Palette::default();
    let drawn = View {
        model: &model,
        palette,
    }
    .to_buffer(width, height.saturating_add(FEET));
    let mut lines = to_lines(&drawn);
    // There are no keys to press.
    lines.truncate(height.into());
    lines.join("\n") + "\n"
}

fn to_lines(buffer: &Buffer) -> Vec<String> {
    let line = |y| {
        let cells = (0..buffer.area.width).filter_map(|x| buffer.cell(Position::new(x, y)));
        let line: String = cells.map(|cell| cell.symbol()).collect();
        line.trim_end().to_owned()
    };
    (0..buffer.area.height).map(line).collect()
}

/// All that is shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'m> {
    pub(super) model: &'m Model,
    pub(super) palette: Palette,
}

impl View<'_> {
    fn to_buffer(self, width: u16, height: u16) -> Buffer {
        let area = Rect::new(0, 0, width, height);
        let mut buffer = Buffer::empty(area);
        self.render(area, &mut buffer);
        buffer
    }
}

impl Widget for View<'_> {
    fn render(self, area: Rect, buffer: &mut Buffer) {
        let Self { model, palette } = self;
        let [top, heads, body, foot] = Layout::vertical([
            Constraint::Length(3),
            Constraint::Length(HEADS - 3),
            Constraint::Min(0),
            Constraint::Length(FEET),
        ])
        .areas(area);
        host(model, palette).render(top, buffer);
        for ((head, unit, _, sort), area) in COLUMNS.into_iter().zip(columns(heads)) {
            let style = match sort {
                Some(sort) if sort == model.sorted().0 => Modifier::BOLD | Modifier::UNDERLINED,
                _ => Modifier::BOLD,
            };
            let head = Line::styled(head, style);
            let lines = vec![head, Line::styled(unit, palette.quiet)];
            let column = Paragraph::new(lines).alignment(alignment(unit));
            column.render(area, buffer);
        }
        let scale = model.scale();
        let cells = columns(body);
        for (row, line) in model.shown().iter().zip(body.rows()) {
            let cells: Vec<_> = cells.iter().map(|cell| cell.intersection(line)).collect();
            guest(row, scale, palette, &cells, buffer);
        }
        Line::styled(keys(model), palette.quiet).render(foot, buffer);
    }
}

/// Divides an area into the columns.
fn columns(area: Rect) -> Vec<Rect> {
    let widths = COLUMNS.map(|(_, _, width, _)| match width {
        0 => Constraint::Fill(1),
        width => Constraint::Length(width),
    });
    Layout::horizontal(widths).spacing(1).split(area).to_vec()
}

fn alignment(unit: &str) -> Alignment {
    match unit {
        "" => Alignment::Left,
        _ => Alignment::Right,
    }
}

fn host(model: &Model, palette: Palette) -> Paragraph<'static> {
    let host = model.host();
    let taken = host.used_bytes.saturating_add(host.lent_bytes);
    let store = format!(
        "used {} + lent {} of {} MiB ({} %)   evicted {}/s   guests {}",
        mib(host.used_bytes),
        mib(host.lent_bytes),
        mib(host.capacity_bytes),
        percent(part(taken, host.capacity_bytes)),
        rate(host.evicted_per_second),
        model.guests(),
    );
    let pressure = match host.pressure {
        Some(pressure) => format!(
            "host waits for memory: some {:.2} % (60 s: {:.2} %)   full {:.2} % (60 s: {:.2} %)",
            pressure.some_10s, pressure.some_60s, pressure.full_10s, pressure.full_60s
        ),
        None => "host waits for memory: its kernel does not say".to_owned(),
    };
    let last = match model.trouble() {
        Some(trouble) => Line::styled(trouble.to_owned(), palette.trouble),
        None => Line::raw(shared(&host.shared)),
    };
    Paragraph::new(vec![Line::raw(store), Line::raw(pressure), last])
}

/// Returns what pools that guests share take, and what is found there; nothing where there are none.
fn shared(shared: &Shared) -> String {
    if shared.pools == 0 {
        return String::new();
    }
    let rates = [shared.hits_per_second, shared.gets_per_second];
    let [hits, gets] = rates.map(|rate| rate.round() as u64);
    format!(
        "shared {} MiB in {} pools   got {}/s   hit {} %",
        mib(shared.bytes),
        shared.pools,
        rate(shared.gets_per_second),
        percent(part(hits, gets)),
    )
}

fn guest(row: &Row, scale: Scale, palette: Palette, cells: &[Rect], buffer: &mut Buffer) {
    let rates = &row.rates;
    let there = row.state == State::Connected;
    let style = if there { Style::new() } else { palette.quiet };
    // Who is not there does nothing.
    let rate = |pages| {
        if there {
            rate(pages)
        } else {
            NONE.to_owned()
        }
    };
    let numbers = [
        row.name.clone(),
        mib(row.usage.memory_bytes),
        rate(rates.puts_per_second),
        percent(rates.refused_rate),
        rate(rates.gets_per_second),
        percent(rates.hit_rate),
    ];
    for ((text, area), (_, unit, ..)) in numbers.into_iter().zip(cells).zip(COLUMNS) {
        let line = Line::styled(text, style).alignment(alignment(unit));
        line.render(*area, buffer);
    }
    let lines = [
        (&row.hits, scale.pages, palette.hits),
        (&row.misses, scale.pages, palette.misses),
        (&row.memory, scale.memory, palette.memory),
    ];
    for ((history, max, style), area) in lines.into_iter().zip(&cells[6..]) {
        let line = sparkline(history, max, area.width).style(style);
        line.render(*area, buffer);
    }
}

/// Returns a line of bars, the last on the right.
fn sparkline(history: &History, max: u64, width: u16) -> Sparkline<'static> {
    Sparkline::default()
        .data(history.last(width.into()))
        .max(max.max(1))
        .direction(RenderDirection::RightToLeft)
}

/// Shows pages a second, in seven columns.
fn rate(rate: f64) -> String {
    const MOST: f64 = 9_999_999.0;
    format!("{:.0}", rate.min(MOST))
}

/// Says what can be pressed, and how the guests are sorted.
fn keys(model: &Model) -> String {
    let letters = Sort::LETTERS.map(|(letter, _, name)| format!("{letter} {name}"));
    let (sort, reversed) = model.sorted();
    let order = if reversed { "▲" } else { "▼" };
    let name = sort.name();
    format!("{order}{name:<7}  q quit  r reverse  {}", letters.join(" "))
}

#[cfg(test)]
mod tests {
    use ratatui::{backend::TestBackend, Terminal};
    use vhost_device_tmem::control::SharedStat;

    use super::{
        super::model::{
            tests::{guest, sample},
            Key,
        },
        *,
    };

    fn model() -> Model {
        let mut model = Model::new(Sort::Memory);
        for second in 0..8 {
            let guests = vec![
                guest(
                    "db",
                    64,
                    100 * second,
                    50 * second * second,
                    40 * second * second,
                ),
                guest("a-very-long-name", 128 * second, 0, 0, 0),
            ];
            model.observe(sample(second, 9 * second, guests));
        }
        model
    }

    #[test]
    fn pools_that_guests_share_have_a_line() {
        let look = |second: u64| {
            let mut sample = sample(second, 0, vec![guest("web", 1, 0, 0, 0)]);
            let mut pool = SharedStat {
                bytes: 3 << 20,
                ..SharedStat::default()
            };
            pool.counters.gets = 200 * second;
            pool.counters.gets_hit = 150 * second;
            sample.stat.shared = vec![pool.clone(), pool];
            sample
        };
        let mut model = Model::new(Sort::Name);
        model.observe(look(1));
        model.observe(look(3));
        let line = "\nshared 6.0 MiB in 2 pools   got 400/s   hit 75.0 %\n";
        let drawn = text(&model, NARROW);
        assert!(drawn.contains(line), "{drawn}");
        // What cannot be seen is more important.
        model.lost("nobody answers");
        let drawn = text(&model, NARROW);
        assert!(!drawn.contains("shared") && drawn.contains("nobody answers"));
    }

    #[test]
    fn a_frame_fits_into_eighty_columns() {
        let expected = "\
used 1024.0 + lent 512.0 of 8192.0 MiB (18.8 %)   evicted 9/s   guests 2
host waits for memory: some 1.50 % (60 s: 0.25 %)   full 0.00 % (60 s: 0.00 %)

GUEST          MEMORY     PUT REFUSED     GOT   HIT HITS      MISSES   MEMORY
                  MiB      /s       %      /s     %
a-very-long-    896.0       0       -       0     -                      ▁▂▃▄▅▆█
db               64.0     100     0.0     650  80.0    ▁▃▄▅▆█     ▁▁▁▂
";
        let drawn = text(&model(), NARROW);
        assert!(drawn.lines().all(|line| line.chars().count() <= 80));
        assert_eq!(drawn, expected, "\n{drawn}");
        // It is the picture of the manual.
        let manual = include_str!("../../../../OPERATING.md");
        for line in expected.lines().filter(|line| !line.is_empty()) {
            assert!(manual.contains(&format!("    {line}\n")), "{line}");
        }
    }

    #[test]
    fn nothing_has_a_colour_where_none_is_wanted() {
        let colours = |palette| {
            let drawn = View {
                model: &model(),
                palette,
            }
            .to_buffer(80, 20);
            let cells = drawn.content.iter();
            cells
                .filter(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
                .count()
        };
        assert_eq!(colours(Palette::new(Some(OsStr::new("1")))), 0);
        assert!(colours(Palette::new(None)) > 0);
        assert!(colours(Palette::new(Some(OsStr::new("")))) > 0);
    }

    #[test]
    fn what_went_wrong_and_what_can_be_pressed_is_shown() {
        let mut model = model();
        model.lost("the daemon went away");
        model.pressed(Key::Sort(Sort::Name));
        model.pressed(Key::Reverse);
        let mut terminal = Terminal::new(TestBackend::new(80, 10)).unwrap();
        let palette = Palette::default();
        let view = View {
            model: &model,
            palette,
        };
        terminal
            .draw(|frame| frame.render_widget(view, frame.area()))
            .unwrap();
        let drawn = to_lines(terminal.backend().buffer());
        assert_eq!(drawn[2], "the daemon went away");
        assert!(drawn[5].starts_with("db ") && drawn[6].starts_with("a-very"));
        let last = drawn.last().unwrap();
        assert_eq!(
            last,
            "▲name     q quit  r reverse  n name m memory p put f refused g got h hit x miss"
        );
    }

    #[test]
    fn any_size_can_be_drawn() {
        for width in [1, 3, 20, 80, 250] {
            for height in [1, 2, 5, 6, 40] {
                let (model, palette) = (&model(), Palette::new(None));
                View { model, palette }.to_buffer(width, height);
            }
        }
        text(&Model::new(Sort::Name), NARROW);
        let mut many = Model::new(Sort::Name);
        let names = (0..1000).map(|n| guest(&format!("{n:04}"), n, 0, 0, 0));
        many.observe(sample(0, 0, names.collect()));
        let drawn = text(&many, NARROW);
        assert_eq!(drawn.lines().count(), 1005);
        assert!(drawn.lines().last().unwrap().starts_with("0999 "));
    }

    #[test]
    fn who_is_not_there_is_told_apart_without_colours() {
        let mut model = Model::new(Sort::Name);
        let mut gone = guest("gone", 1, 0, 0, 0);
        gone.connected = false;
        model.observe(sample(0, 0, vec![gone]));
        let drawn = text(&model, NARROW);
        let row: Vec<_> = drawn.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(row, ["gone", "1.0", "-", "-", "-", "-"]);
    }
}
