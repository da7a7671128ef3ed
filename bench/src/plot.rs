//! A comparison as a picture: bars with their intervals, a panel for each thing measured.

use std::fmt::Write;

use crate::comparison::{Comparison, Key, Measure};

const WIDTH: f64 = 900.0;
const PANEL: f64 = 220.0;
/// For the numbers at the left.
const MARGIN: f64 = 90.0;
/// Above and below the bars of a panel.
const TOP: f64 = 40.0;
const BOTTOM: f64 = 30.0;
const LEGEND: f64 = 40.0;
/// Colours that differ also for those who see few (Okabe and Ito).
const COLOURS: [&str; 7] = ["#666666", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"];

/// The picture, in SVG.
pub(crate) fn svg(comparison: &Comparison) -> String {
    let (measures, ways) = (comparison.each(|key| key.measure), comparison.each(|key| key.way));
    let height = LEGEND + PANEL * measures.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (at, way) in ways.iter().enumerate() {
        let x = MARGIN + at as f64 * (WIDTH - MARGIN) / ways.len() as f64;
        let colour = colour(at);
        let _ = writeln!(out, "<rect x=\"{x:.1}\" y=\"14\" width=\"12\" height=\"12\" fill=\"{colour}\"/>");
        text(&mut out, x + 18.0, 25.0, "start", way);
    }
    for (at, measure) in measures.into_iter().enumerate() {
        panel(&mut out, comparison, measure, &ways, LEGEND + at as f64 * PANEL);
    }
    out + "</svg>\n"
}

fn panel(out: &mut String, comparison: &Comparison, measure: Measure, ways: &[&'static str], top: f64) {
    let rows: Vec<_> = comparison.rows.iter().filter(|row| row.key.measure == measure).collect();
    let most = rows.iter().filter_map(|row| row.median()).map(|median| median.high).fold(0.0, f64::max);
    let mut sizes: Vec<u32> = rows.iter().map(|row| row.key.size).collect();
    sizes.dedup();
    let (base, room) = (top + PANEL - BOTTOM, PANEL - TOP - BOTTOM);
    let y = |figure: f64| base - room * figure / most.max(f64::MIN_POSITIVE);
    text(out, MARGIN, top + TOP - 14.0, "start", measure.name);
    for figure in [0.0, most / 2.0, most] {
        let (line, digits) = (y(figure), measure.digits);
        let _ = writeln!(out, "<path d=\"M{MARGIN} {line:.1}H{:.1}\" stroke=\"#cccccc\"/>", WIDTH - 10.0);
        text(out, MARGIN - 8.0, line + 4.0, "end", &format!("{figure:.digits$}"));
    }
    let group = (WIDTH - 10.0 - MARGIN) / sizes.len().max(1) as f64;
    let bar = group * 0.8 / ways.len().max(1) as f64;
    for (place, size) in sizes.into_iter().enumerate() {
        let left = MARGIN + group * (place as f64 + 0.1);
        text(out, left + group * 0.4, base + 18.0, "middle", &format!("{size} {}", comparison.things));
        for (at, &way) in ways.iter().enumerate() {
            let Some(median) = comparison.median(Key { size, measure, way }) else { continue };
            let (x, head) = (left + bar * at as f64, y(median.value));
            let _ = writeln!(
                out,
                "<rect x=\"{x:.1}\" y=\"{head:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>\
                 <path d=\"M{:.1} {:.1}V{:.1}\" stroke=\"black\"/>",
                bar * 0.9,
                base - head,
                colour(at),
                x + bar * 0.45,
                y(median.low),
                y(median.high)
            );
        }
    }
}

fn colour(at: usize) -> &'static str {
    COLOURS[at % COLOURS.len()]
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comparison::tests::sample;

    #[test]
    fn the_greatest_figure_reaches_the_top() {
        let picture = svg(&sample());
        // The interval of the first way ends at the panel's upper line.
        assert!(picture.contains("V80.0\" stroke=\"black\""), "{picture}");
        assert_eq!(picture.matches("stroke=\"black\"").count(), 2, "two bars");
        assert!(picture.contains(">10 names</text>") && picture.ends_with("</svg>\n"), "{picture}");
    }
}
