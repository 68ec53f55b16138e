//! The page: headline, picture, table; one file that loads nothing.

use super::axis::time_label;
use super::read::{Data, thousands};
use super::{escaped, svg};
use std::fmt::Write as _;

const STYLE: &str = "
:root{color-scheme:light dark}
body{margin:0;background:#ffffff;color:#1b1f24;font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}
main{max-width:960px;margin:0 auto;padding:28px 16px 48px}
h1{font-size:26px;line-height:1.25;margin:0 0 2px}p{margin:0 0 16px;color:#57606a}
svg{display:block;width:100%;height:auto}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;margin:8px 0 24px}
th,td{padding:7px 10px;text-align:right;white-space:nowrap;border-bottom:1px solid #e4e7eb}
th:first-child,td:first-child{text-align:left;white-space:normal;overflow-wrap:anywhere}
thead th{font-weight:600;border-bottom:2px solid #8c959f}tbody th{font-weight:400}
footer{color:#57606a;font-size:13px}
@media screen and (prefers-color-scheme:dark){body{background:#0f1419;color:#e6edf3}p,footer{color:#9aa7b4}
th,td{border-color:#232b34}thead th{border-color:#5b6773}}
@media print{@page{size:A4;margin:14mm}body{background:#fff;color:#000}main{padding:0;max-width:none}p,footer{color:#333}
th,td{border-color:#ddd}thead th{border-color:#666}table,tr,svg{break-inside:avoid}}
";

/// The page.
pub(super) fn document(data: &Data, title: &str) -> String {
    let mut rows = String::new();
    for (tag, h) in data.ordered() {
        let at = |q| time_label(h.value_at_quantile(q) as f64);
        let _ = writeln!(
            rows,
            "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escaped(svg::named(tag)),
            thousands(h.len()),
            at(0.5),
            at(0.9),
            at(0.99),
            at(0.999),
            time_label(h.max() as f64)
        );
    }
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\">\n<title>{title}</title>\n<style>{}{STYLE}</style>\n</head>\n\
         <body>\n<main>\n<h1>{title}</h1>\n<p>{}</p>\n<div class=\"scroll\"><table>\n<thead><tr><th \
         scope=\"col\">series</th><th scope=\"col\">count</th><th scope=\"col\">p50</th><th scope=\"col\">p90</th><th \
         scope=\"col\">p99</th><th scope=\"col\">p99.9</th><th scope=\"col\">max</th></tr></thead>\n<tbody>\n{rows}\
         </tbody>\n</table></div>\n{}\
         <footer>Drawn by ringspan {} from {} intervals. Round trips are of probes that were answered; lateness is the \
         prober's own.</footer>\n</main>\n</body>\n</html>\n",
        svg::style(),
        escaped(&data.subtitle()),
        svg::inline(data, title),
        env!("CARGO_PKG_VERSION"),
        thousands(data.intervals as u64),
        title = escaped(title),
    )
}
