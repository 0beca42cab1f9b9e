//! Averages over the last seconds as Knative takes them (`pkg/autoscaler/aggregation/bucketing.go` of knative/serving): buckets
//! of one second, linear or exponentially weighted.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Averages are cut off after so many digits.
const DIGITS: f64 = 1e6;
/// The weights of a weighted average sum up to at least this.
const WEIGHT_SUM: f64 = 0.9999;
/// The newest second counts at least so much.
const LEAST_WEIGHT: f64 = 0.2;

/// How the seconds of a window become one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aggregation {
    /// All seconds count the same.
    #[default]
    Linear,
    /// Newer seconds count more.
    WeightedExponential,
}

/// Values of the last seconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Window {
    values: BTreeMap<i64, f64>,
    first: Option<i64>,
    last: Option<i64>,
}

impl Window {
    /// Adds a value to the bucket of a second, for a window of `seconds`.
    pub fn record(&mut self, second: i64, value: f64, seconds: u32) {
        let length = i64::from(seconds.max(1));
        match self.last {
            Some(last) if second.saturating_add(length) <= last => return,
            Some(last) if second.saturating_sub(last) >= length => {
                self.values.clear();
                (self.first, self.last) = (Some(second), Some(second));
            }
            Some(last) => {
                self.first = self.first.map(|first| first.min(second));
                self.last = Some(last.max(second));
            }
            None => (self.first, self.last) = (Some(second), Some(second)),
        }
        *self.values.entry(second).or_default() += value;
        if let Some(last) = self.last {
            self.values = self.values.split_off(&(last - length + 1));
        }
    }

    /// The second that was recorded last.
    #[must_use]
    pub const fn last(&self) -> Option<i64> {
        self.last
    }

    /// Whether nothing was recorded for the length of the window.
    #[must_use]
    pub fn is_empty(&self, second: i64, seconds: u32) -> bool {
        self.last
            .is_none_or(|last| second.saturating_sub(last) > i64::from(seconds.max(1)))
    }

    /// The average at a second.
    #[must_use]
    pub fn average(&self, aggregation: Aggregation, second: i64, seconds: u32) -> f64 {
        match aggregation {
            Aggregation::Linear => self.linear(second, i64::from(seconds.max(1))),
            Aggregation::WeightedExponential => self.weighted(second, i64::from(seconds.max(1))),
        }
    }

    /// A window that was not written to for long enough counts the time since its first value only; seconds without a value
    /// between others count as 0.
    fn linear(&self, second: i64, length: i64) -> f64 {
        let (Some(first), Some(last)) = (self.first, self.last) else {
            return 0.0;
        };
        let late = second.saturating_sub(last).max(0);
        if late >= length {
            return 0.0;
        }
        let valid = (last - first + 1).min(length - late);
        let sum: f64 = self
            .values
            .range(last + late - length + 1..)
            .map(|(_, value)| value)
            .sum();
        (sum / valid as f64 * DIGITS).floor() / DIGITS
    }

    fn weighted(&self, second: i64, length: i64) -> f64 {
        let Some(last) = self.last.filter(|last| second.saturating_sub(*last) <= length) else {
            return 0.0;
        };
        let weight = (1.0 - (1.0 - WEIGHT_SUM).powf(1.0 / length as f64)).max(LEAST_WEIGHT);
        let late = second.saturating_sub(last).max(0);
        let age = |at: i64| (last - at + late) as f64;
        self.values
            .range(last - (length - late) + 1..)
            .map(|(at, value)| value * weight * (1.0 - weight).powf(age(*at)))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of knative's `TestTimedFloat64BucketsWindowAverage`.
    #[test]
    fn linear_averages_are_those_of_knative() {
        let mut window = Window::default();
        let average = |window: &Window, at: i64| window.average(Aggregation::Linear, at, 5);
        window.record(0, 1.0, 5);
        assert_eq!(average(&window, 0), 1.0, "since the first value");
        for i in 1..5 {
            window.record(i, (i + 1) as f64, 5);
        }
        assert_eq!(average(&window, 4), 3.0);
        assert_eq!(average(&window, 3), 3.0, "now lags behind");
        assert_eq!(average(&window, 6), 4.0, "a short hole: (15 - 1 - 2) / 3");
        assert_eq!(average(&window, 10), 0.0, "a long hole");
        window.record(6, 91.0, 5);
        assert_eq!(average(&window, 6), 20.6, "(15 - 1 - 2 + 91) / 5");
        window.record(60, 1984.0, 5);
        assert_eq!(average(&window, 60), 1984.0);
        window.record(57, 4.0, 5);
        assert_eq!(average(&window, 60), 497.0, "an earlier time: (4 + 1984) / 4");
        window.record(61, 5.0, 5);
        assert_eq!(average(&window, 61), 398.6);
        window.record(58, 10.0, 5);
        assert_eq!(average(&window, 61), 400.6);
        window.record(55, 10.0, 5);
        assert_eq!(average(&window, 61), 400.6, "too early");
    }

    /// `TestDescendingRecord`, and 27 / 6 of `TestTimedFloat64BucketsWindowUpdate`.
    #[test]
    fn order_does_not_matter_and_digits_are_cut() {
        let mut window = Window::default();
        (0..=8).rev().for_each(|i| window.record(i, 5.0, 5));
        assert_eq!(window.average(Aggregation::Linear, 5, 5), 5.0);
        let mut window = Window::default();
        (1..=6).for_each(|i| window.record(i, if i == 6 { 7.1 } else { 4.0 }, 10));
        assert_eq!(window.average(Aggregation::Linear, 6, 10), 4.516666);
    }

    /// The figures in the comment of knative's weighted average, and its coefficients for 6 and 60 seconds.
    #[test]
    fn weighted_averages_are_those_of_knative() {
        let mut window = Window::default();
        for (at, value) in [10.0, 10.0, 5.0, 5.0].into_iter().enumerate() {
            window.record(at as i64, value, 60);
        }
        let a: f64 = 0.2;
        let want = 5.0 * a + 5.0 * a * 0.8 + 10.0 * a * 0.64 + 10.0 * a * 0.512;
        assert!((window.average(Aggregation::WeightedExponential, 3, 60) - want).abs() < 1e-9);
        let late = window.average(Aggregation::WeightedExponential, 5, 60);
        assert!((late - want * 0.64).abs() < 1e-9, "two seconds without a value");
        assert_eq!(window.average(Aggregation::WeightedExponential, 99, 60), 0.0);
        let mut short = Window::default();
        short.record(0, 1.0, 6);
        let newest = short.average(Aggregation::WeightedExponential, 0, 6);
        assert!((newest - 0.7846).abs() < 1e-4, "{newest}");
    }
}
