//! Medians, percentiles and how a figure is written.

use serde::Serialize;

/// The middle of `values`; of an even number of them, the mean of the two in the middle. 0 if there are none.
pub fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { at(middle) } else { f64::midpoint(at(middle.saturating_sub(1)), at(middle)) }
}

/// The smallest value that at least `share` (0 to 1) of `values` do not exceed (nearest rank). 0 if there are none.
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let sorted = sorted(values);
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or_default()
}

/// The largest. 0 if there are none.
pub fn largest(values: &[f64]) -> f64 {
    percentile(values, 1.0)
}

/// The smallest. 0 if there are none.
pub fn smallest(values: &[f64]) -> f64 {
    percentile(values, 0.0)
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Events per second.
    PerSecond,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// So many of something.
    Count,
}

impl Unit {
    /// `value`, with three figures or so.
    pub fn show(self, value: f64) -> String {
        let (value, unit) = match (self, value.abs()) {
            (Self::PerSecond, size) if size >= 1e3 => (value / 1e3, "k/s"),
            (Self::PerSecond, _) => (value, "/s"),
            (Self::Seconds, size) if size >= 1.0 => (value, "s"),
            (Self::Seconds, size) if size >= 1e-3 => (value * 1e3, "ms"),
            (Self::Seconds, _) => (value * 1e6, "µs"),
            (Self::Bytes, size) if size >= 1e6 => (value / 1e6, "MB"),
            (Self::Bytes, _) => (value / 1e3, "kB"),
            (Self::Count, _) => (value, ""),
        };
        format!("{} {unit}", plain(value)).trim_end().to_owned()
    }
}

/// A number with about three figures.
pub fn plain(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 || size == 0.0 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.9995 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_and_not_the_mean() {
        assert_eq!(median(&[100.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 100.0]), 3.0);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), 100.0);
        assert_eq!(percentile(&values, 0.99), 198.0);
        assert_eq!((smallest(&values), largest(&values)), (1.0, 200.0));
        assert_eq!(percentile(&[], 0.99), 0.0);
    }

    #[test]
    fn figures_have_their_unit_beside_them() {
        let table = [
            (Unit::PerSecond, 30_123.0, "30.1 k/s"),
            (Unit::Seconds, 0.000_033_4, "33.4 µs"),
            (Unit::Seconds, 0.001_5, "1.50 ms"),
            (Unit::Bytes, 11_500_000.0, "11.5 MB"),
            (Unit::Bytes, 74_900.0, "74.9 kB"),
        ];
        for (unit, value, expected) in table {
            assert_eq!(unit.show(value), expected);
        }
    }
}
