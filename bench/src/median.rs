//! The middle of a few figures, and how sure it is.

/// How sure an interval is to be, where there are figures enough.
const WANTED: f64 = 0.95;

/// A median with an interval that holds the true one, whatever the figures are spread like: it lies between two
/// of the figures themselves, with the probability that not too many of them fell on one side of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Median {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// How sure the interval is: at least 0.95 of six figures or more.
    pub(crate) confidence: f64,
}

impl Median {
    /// `None` of no figure.
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        let (left_out, confidence) = interval(sorted.len());
        Some(Self {
            value: (sorted[last / 2] + sorted[last.div_ceil(2)]) / 2.0,
            low: sorted[left_out],
            high: sorted[last - left_out],
            confidence,
        })
    }

    /// Both may have the same true median.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.low <= other.high && other.low <= self.high
    }
}

/// How many of the least and of the greatest figures an interval leaves out, as many as it can, and how sure it
/// then is. Each figure falls below the true median as a coin falls.
fn interval(count: usize) -> (usize, f64) {
    let mut ways = 1.0;
    let mut beyond = ways;
    let sure = |beyond: f64| 1.0 - 2.0 * beyond / 2f64.powi(count as i32);
    let mut best = (0, sure(beyond).max(0.0));
    for left_out in 1..count / 2 {
        ways *= (count - left_out + 1) as f64 / left_out as f64;
        beyond += ways;
        if sure(beyond) < WANTED {
            break;
        }
        best = (left_out, sure(beyond));
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_of_its_interval() {
        let median = Median::of((1..=12).rev().map(f64::from)).unwrap();
        assert_eq!((median.value, median.low, median.high), (6.5, 3.0, 10.0));
        // By the table of the sign test.
        assert!((median.confidence - 0.9614).abs() < 1e-4, "{median:?}");
        assert_eq!(Median::of([3.0, 1.0, 2.0]).unwrap().value, 2.0);
        assert_eq!(Median::of([]), None);
    }

    #[test]
    fn few_figures_are_told_to_be_few() {
        for (count, left_out, sure) in
            [(1, 0, 0.0), (2, 0, 0.5), (5, 0, 0.9375), (6, 0, 0.96875), (9, 1, 0.9609)]
        {
            let (found, confidence) = interval(count);
            assert!(found == left_out && (confidence - sure).abs() < 1e-4, "{count}: {found}, {confidence}");
        }
        let (left_out, confidence) = interval(100);
        assert!(left_out == 39 && (0.95..0.97).contains(&confidence), "{left_out}, {confidence}");
    }

    #[test]
    fn intervals_overlap_or_do_not() {
        let of = |low: f64, high: f64| Median { value: low, low, high, confidence: 0.95 };
        assert!(of(1.0, 2.0).overlaps(&of(2.0, 3.0)));
        assert!(of(1.0, 9.0).overlaps(&of(2.0, 3.0)));
        assert!(!of(2.5, 3.0).overlaps(&of(1.0, 2.0)));
    }
}
