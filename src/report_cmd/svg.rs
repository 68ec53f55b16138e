//! The picture: percentiles, RTT over time as a heat map, lateness beside it. Own templates rather than a plotting
//! library: colours are classes, so that one file follows the reader's theme and prints on white.

use super::axis::{TimeAxis, percentile_at, percentile_ticks, span_ticks, time_label};
use super::escaped;
use super::read::{Data, LATENESS, ROWS, row_begin};
use ringspan_engine::histogram::Histogram;
use std::fmt::Write as _;

/// Size of the whole, in units that are pixels at 100 %.
const WIDTH: f64 = 960.0;
/// Where panels begin and end.
const LEFT: f64 = 72.0;
const RIGHT: f64 = 916.0;
const PANEL: f64 = RIGHT - LEFT;
/// Curves at most: as many as there are colours that everybody can tell apart.
const CURVES_MAX: usize = 7;
/// Shades of the heat map.
const SHADES: usize = 9;
/// Room for a panel's title and legend above it, and for the ticks and the axis' name below.
const ABOVE: f64 = 58.0;
const BELOW: f64 = 52.0;

/// What a theme is made of. The curves' colours are Okabe and Ito's (Color Universal Design, 2008), lighter on a dark
/// ground; the heat map's are one hue, from near the ground to far from it.
struct Theme {
    ground: &'static str,
    panel: &'static str,
    ink: &'static str,
    soft: &'static str,
    grid: &'static str,
    line: &'static str,
    curves: [&'static str; CURVES_MAX],
    shades: [&'static str; SHADES],
    /// p50 and p99 over the heat map.
    over: [&'static str; 2],
}

const LIGHT: Theme = Theme {
    ground: "#ffffff",
    panel: "#fafbfc",
    ink: "#1b1f24",
    soft: "#57606a",
    grid: "#e4e7eb",
    line: "#8c959f",
    curves: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#555555"],
    shades: ["#e3edf7", "#c9dcef", "#a6c8e4", "#7eafd7", "#5694c7", "#3579b5", "#1b5e9f", "#0d4582", "#082c5c"],
    over: ["#d55e00", "#7a2d00"],
};

const DARK: Theme = Theme {
    ground: "#0f1419",
    panel: "#141a21",
    ink: "#e6edf3",
    soft: "#9aa7b4",
    grid: "#232b34",
    line: "#5b6773",
    curves: ["#4aa8e0", "#ff8a3d", "#2ec99a", "#e79bc6", "#e6b422", "#8fd0f5", "#b0b0b0"],
    shades: ["#16293b", "#1b3a56", "#204d74", "#276293", "#3179b3", "#4a94cf", "#72b1e2", "#a3cff0", "#dcf0ff"],
    over: ["#ffb26b", "#ffe0c2"],
};

/// Rules of a theme. Colours are written out: not every reader of SVG knows variables.
fn rules(theme: &Theme) -> String {
    let Theme { ground, panel, ink, soft, grid, line, curves, shades, over } = theme;
    let mut out = format!(
        ".rs .ground{{fill:{ground}}}.rs .seam{{stroke:{ground}}}.rs .panel{{fill:{panel};stroke:{line}}}.rs text{{fill:{ink}}}\
         .rs .s,.rs .k{{fill:{soft}}}.rs .g{{stroke:{line}}}.rs .f{{stroke:{grid}}}"
    );
    for (n, colour) in curves.iter().enumerate() {
        let _ = write!(out, ".rs .c{n}{{stroke:{colour}}}.rs .b{n}{{fill:{colour}}}");
    }
    for (n, colour) in shades.iter().enumerate() {
        let _ = write!(out, ".rs .h{}{{fill:{colour}}}", n + 1);
    }
    for (name, colour) in ["50", "99"].iter().zip(over) {
        let _ = write!(out, ".rs .p{name}{{stroke:{colour}}}.rs .q{name}{{fill:{colour}}}");
    }
    out
}

/// The style of the picture: light, dark where the reader likes it, light again on paper.
pub(super) fn style() -> String {
    let shapes = ".rs text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}\
                  .rs .h{font-size:22px;font-weight:600}.rs .t{font-size:15px;font-weight:600}\
                  .rs .s,.rs .k{font-size:12px}.rs .e{text-anchor:end}.rs .m{text-anchor:middle}\
                  .rs .panel{stroke-width:1}.rs .g{stroke-width:.8;stroke-opacity:.45}.rs .f{stroke-width:.8}\
                  .rs .l{fill:none;stroke-width:2.2;stroke-linejoin:round}\
                  .rs .seam{stroke-width:5;stroke-opacity:.75}";
    let (light, dark) = (rules(&LIGHT), rules(&DARK));
    format!("{shapes}\n{light}\n@media screen and (prefers-color-scheme:dark){{{dark}}}\n")
}

/// The picture as a file of its own.
pub(super) fn document(data: &Data, title: &str) -> String {
    let (height, panels) = panels(data, 84.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"rs\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" \
         height=\"{height:.0}\" role=\"img\" aria-label=\"{}\">\n<style>{}</style>\n",
        escaped(title),
        style()
    );
    let _ = writeln!(out, "<rect class=\"ground\" width=\"{WIDTH}\" height=\"{height:.0}\"/>");
    let _ = writeln!(out, "<text class=\"h\" x=\"{LEFT}\" y=\"40\">{}</text>", escaped(title));
    let _ = writeln!(out, "<text class=\"s\" x=\"{LEFT}\" y=\"62\">{}</text>", escaped(&data.subtitle()));
    out + &panels + "</svg>\n"
}

/// The picture within a page that has the headline and the style already.
pub(super) fn inline(data: &Data, title: &str) -> String {
    let (height, panels) = panels(data, 0.0);
    format!(
        "<svg class=\"rs\" viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{}\">\n{panels}</svg>\n",
        escaped(title)
    )
}

/// All panels from `top` on, and where they end.
fn panels(data: &Data, top: f64) -> (f64, String) {
    let mut out = String::new();
    let mut y = top;
    y = percentiles(data, y, &mut out);
    if data.columns.iter().any(|c| c.rtt_us.is_some()) {
        y = heat_map(data, y, &mut out);
    }
    if data.columns.iter().any(|c| c.lateness_us.is_some()) {
        y = lateness(data, y, &mut out);
    }
    (y + 8.0, out)
}

/// One panel's ground, title and time axis at the left.
struct Panel {
    top: f64,
    height: f64,
    axis: TimeAxis,
}

impl Panel {
    fn begin(title: &str, y: f64, height: f64, axis: TimeAxis, out: &mut String) -> Panel {
        let panel = Panel { top: y + ABOVE, height, axis };
        let _ = writeln!(out, "<text class=\"t\" x=\"{LEFT}\" y=\"{:.1}\">{}</text>", y + 26.0, escaped(title));
        let _ = writeln!(
            out,
            "<rect class=\"panel\" x=\"{LEFT}\" y=\"{:.1}\" width=\"{PANEL}\" height=\"{height}\"/>",
            panel.top
        );
        panel
    }

    /// Grid and labels of the time axis: all of 1, 2, 5 where there is room, powers of ten else.
    fn grid(&self, out: &mut String) {
        let ticks = self.axis.ticks();
        let is_roomy = self.height / ticks.len() as f64 >= 17.0;
        for (us, is_ten) in ticks {
            let (y, class) = (self.y(us), if is_ten { "g" } else { "f" });
            let _ = writeln!(out, "<line class=\"{class}\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
            if is_ten || is_roomy {
                let (x, y) = (LEFT - 8.0, y + 4.0);
                let _ = writeln!(out, "<text class=\"k e\" x=\"{x}\" y=\"{y:.1}\">{}</text>", time_label(us));
            }
        }
    }

    fn bottom(&self) -> f64 {
        self.top + self.height
    }

    fn y(&self, us: f64) -> f64 {
        self.bottom() - self.axis.at(us) * self.height
    }

    /// A tick of the axis below.
    fn below(&self, x: f64, label: &str, has_line: bool, out: &mut String) {
        if has_line {
            let (top, bottom) = (self.top, self.bottom());
            let _ = writeln!(out, "<line class=\"f\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\"/>");
        }
        let y = self.bottom() + 18.0;
        let _ = writeln!(out, "<text class=\"k m\" x=\"{x:.1}\" y=\"{y:.1}\">{label}</text>");
    }

    /// What the axis below is.
    fn named(&self, name: &str, out: &mut String) {
        let (x, y) = (LEFT + PANEL / 2.0, self.bottom() + 38.0);
        let _ = writeln!(out, "<text class=\"s m\" x=\"{x:.1}\" y=\"{y:.1}\">{name}</text>");
    }
}

/// Names and colours in a line above a panel.
fn legend(entries: &[(String, String)], y: f64, out: &mut String) {
    let mut x = LEFT;
    for (class, name) in entries {
        let _ = writeln!(
            out,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"16\" height=\"4\" rx=\"2\"/>",
            y - 6.0
        );
        let _ = writeln!(out, "<text class=\"k\" x=\"{:.1}\" y=\"{y:.1}\">{}</text>", x + 22.0, escaped(name));
        x += 22.0 + 7.2 * name.chars().count() as f64 + 22.0;
    }
}

fn percentiles(data: &Data, y: f64, out: &mut String) -> f64 {
    let mut curves: Vec<(&str, &Histogram)> = data.ordered().into_iter().filter(|(_, h)| !h.is_empty()).collect();
    let left_out = curves.len().saturating_sub(CURVES_MAX);
    curves.truncate(CURVES_MAX);
    // One probe in a hundred may leave the picture below: a single 1 µs would cost half of it.
    let low = curves.iter().map(|(_, h)| h.value_at_quantile(0.01).max(1)).min().unwrap_or(1);
    let high = curves.iter().map(|(_, h)| h.max()).max().unwrap_or(10);
    let most = curves.iter().map(|(_, h)| h.len()).max().unwrap_or(1);
    // As many nines as the largest count can show, 99 % at least.
    let nines = ((most as f64).log10().ceil()).clamp(2.0, 5.0);
    let panel = Panel::begin("Percentiles", y, 330.0, TimeAxis::around(low as f64, high as f64), out);
    for (at, label) in percentile_ticks(nines) {
        panel.below(LEFT + at * PANEL, &label, true, out);
    }
    panel.grid(out);
    for (n, (_, histogram)) in curves.iter().enumerate() {
        let mut path = String::new();
        for step in histogram.iter_quantiles(8) {
            let at = percentile_at(step.quantile_iterated_to(), nines);
            let (x, y) = (LEFT + at * PANEL, panel.y(step.value_iterated_to() as f64));
            let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { "M" } else { "L" });
            if at >= 1.0 {
                break;
            }
        }
        let _ = writeln!(out, "<path class=\"l c{n}\" d=\"{path}\"/>");
    }
    let mut entries: Vec<(String, String)> =
        curves.iter().enumerate().map(|(n, (tag, _))| (format!("b{n}"), named(tag).to_owned())).collect();
    if left_out > 0 {
        entries.push(("ground".into(), format!("and {left_out} more in the table")));
    }
    legend(&entries, y + 48.0, out);
    panel.named("percentile: so many of all were at most so long", out);
    panel.bottom() + BELOW
}

/// What people call a tag.
pub(super) fn named(tag: &str) -> &str {
    match tag {
        "rtt" => "round trip",
        LATENESS => "lateness of the prober",
        tag => tag,
    }
}

/// An axis of time below, and the width of a column.
fn over_time(data: &Data, panel: &Panel, out: &mut String) -> f64 {
    let length = data.length.as_secs_f64();
    for (s, label) in span_ticks(length) {
        panel.below(LEFT + s / length * PANEL, &label, false, out);
    }
    panel.named("time since the first interval", out);
    PANEL / data.columns.len() as f64
}

fn heat_map(data: &Data, y: f64, out: &mut String) -> f64 {
    let (mut low, mut high) = (ROWS, 0);
    for column in &data.columns {
        for (row, count) in column.rtt.iter().enumerate() {
            if *count > 0 {
                (low, high) = (low.min(row), high.max(row));
            }
        }
    }
    let axis = TimeAxis::around(row_begin(low), row_begin(high + 1));
    let panel = Panel::begin("Round trip over time", y, 300.0, axis, out);
    panel.grid(out);
    let width = over_time(data, &panel, out);
    let most = data.columns.iter().flat_map(|c| &c.rtt).copied().max().unwrap_or(1).max(2);
    for (n, column) in data.columns.iter().enumerate() {
        let x = LEFT + n as f64 * width;
        for (row, count) in column.rtt.iter().enumerate().filter(|(_, count)| **count > 0) {
            // By the logarithm of the count: one straggler among thousands is seen.
            let share = (*count as f64).ln_1p() / (most as f64).ln_1p();
            let shade = ((share * SHADES as f64).ceil() as usize).clamp(1, SHADES);
            let (top, bottom) = (panel.y(row_begin(row + 1)), panel.y(row_begin(row)));
            let (width, height) = (width + 0.3, (bottom - top + 0.3).max(0.8));
            let _ = writeln!(
                out,
                "<rect class=\"h{shade}\" x=\"{x:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
            );
        }
    }
    let line = |at: usize| data.columns.iter().map(move |c| c.rtt_us.map(|us| us[at] as f64)).collect::<Vec<_>>();
    for (at, class) in ["p50", "p99"].into_iter().enumerate() {
        // A seam of the ground's colour keeps a line apart from cells of any shade.
        steps(&line(at), &panel, width, "seam", out);
        steps(&line(at), &panel, width, class, out);
    }
    let entries = [("q50", "p50"), ("q99", "p99"), ("h2", "few probes"), ("h5", "more"), ("h9", "many")];
    legend(&entries.map(|(class, name)| (class.to_owned(), name.to_owned())), y + 48.0, out);
    panel.bottom() + BELOW
}

fn lateness(data: &Data, y: f64, out: &mut String) -> f64 {
    let line = |at: usize| data.columns.iter().map(move |c| c.lateness_us.map(|us| us[at] as f64)).collect::<Vec<_>>();
    let lines = [line(0), line(1), line(2)];
    let all = || lines.iter().flatten().flatten().copied();
    let axis = TimeAxis::around(all().fold(f64::INFINITY, f64::min), all().fold(1.0, f64::max));
    let panel = Panel::begin("Lateness of the prober: actual minus scheduled start", y, 160.0, axis, out);
    panel.grid(out);
    let width = over_time(data, &panel, out);
    for (values, class) in lines.iter().zip(["c0", "c2", "c1"]) {
        steps(values, &panel, width, class, out);
    }
    let entries = [("b0", "p50"), ("b2", "p99"), ("b1", "max")];
    legend(&entries.map(|(class, name)| (class.to_owned(), name.to_owned())), y + 48.0, out);
    panel.bottom() + BELOW
}

/// A line through the middle of the columns; it breaks where nothing was measured.
fn steps(values: &[Option<f64>], panel: &Panel, width: f64, class: &str, out: &mut String) {
    let (mut path, mut is_drawing) = (String::new(), false);
    for (n, value) in values.iter().enumerate() {
        let Some(us) = value else {
            is_drawing = false;
            continue;
        };
        let (x, y) = (LEFT + (n as f64 + 0.5) * width, panel.y(*us));
        // A lone column is a short dash.
        let begin = if is_drawing {
            format!("L{x:.1} {y:.1}")
        } else {
            format!("M{:.1} {y:.1}L{x:.1} {y:.1}", x - width / 2.0)
        };
        path += &begin;
        is_drawing = true;
    }
    let _ = writeln!(out, "<path class=\"l {class}\" d=\"{path}\"/>");
}
