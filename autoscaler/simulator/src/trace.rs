//! A load that was recorded: what would a function's settings have done with it, and what would that have cost?
use imageflow_decider::PolicyConfig;

use crate::metrics::Figures;
use crate::policy::{Decider, Told};
use crate::workload::{Function, Ms, Request, Workload};
use crate::world;

/// Most requests of a trace.
pub const MOST_REQUESTS: usize = 5_000_000;
/// Longest that a request may take, and the latest that it may come: a week, ms.
const LONGEST_MS: Ms = 3_600_000;
const LATEST_MS: Ms = 7 * 24 * 3_600_000;
/// The world goes on after the last request, so that the way to zero is seen, ms.
const AFTERWARDS_MS: Ms = 15 * 60_000;
/// Cold starts are drawn from this seed.
const SEED: u64 = 1;

/// What is wrong with a trace: the line, counted from 1, and what it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadTrace {
    /// The line; 0 for the whole.
    pub line: u64,
    /// What is wrong and what to write.
    pub what: String,
}

impl std::fmt::Display for BadTrace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => f.write_str(&self.what),
            line => write!(f, "line {line}: {}", self.what),
        }
    }
}

impl std::error::Error for BadTrace {}

/// Reads requests from CSV with a header: `at_ms` (since the begin of the trace) and `service_ms`, in any order of columns and lines;
/// other columns are not looked at.
///
/// # Errors
/// [`BadTrace`].
pub fn read(text: &str) -> Result<Vec<Request>, BadTrace> {
    let bad = |line: u64, what: String| BadTrace { line, what };
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let header = reader.headers().map_err(|e| bad(1, e.to_string()))?.clone();
    let column = |name: &str| {
        let at = header.iter().position(|column| column == name);
        at.ok_or_else(|| bad(1, format!("the header has no column {name}; write at_ms,service_ms")))
    };
    let (at, service) = (column("at_ms")?, column("service_ms")?);
    let mut requests = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| bad(e.position().map_or(0, csv::Position::line), e.to_string()))?;
        let line = record.position().map_or(0, csv::Position::line);
        let number = |column: usize, name: &str, most: Ms| {
            let text = record.get(column).unwrap_or_default();
            let value = text.parse::<f64>().ok().filter(|ms| (0.0..=most as f64).contains(ms));
            value.ok_or_else(|| {
                bad(
                    line,
                    format!("{name} is \"{text}\"; write milliseconds from 0 to {most}"),
                )
            })
        };
        if requests.len() == MOST_REQUESTS {
            return Err(bad(
                line,
                format!("there are more than {MOST_REQUESTS} requests; cut the trace"),
            ));
        }
        requests.push(Request {
            at: number(at, "at_ms", LATEST_MS)? as Ms,
            function: 0,
            service: (number(service, "service_ms", LONGEST_MS)? as Ms).max(1),
            partition: 0,
            fails: 0,
            next: None,
        });
    }
    if requests.is_empty() {
        return Err(bad(
            0,
            "there are no requests; write lines of at_ms,service_ms below the header".to_owned(),
        ));
    }
    Ok(requests)
}

/// A world with one function and the requests of a trace.
#[must_use]
pub fn load(requests: Vec<Request>, function: Function, gpus: u32) -> Workload {
    let end = requests.iter().map(|r| r.at + r.service).max().unwrap_or(0);
    let mut load = Workload::new("trace", "a trace", end + AFTERWARDS_MS, vec![function]);
    load.gpus = gpus;
    load.with(requests)
}

/// What settings would have done with a load: the figures, and each change with its reasons.
#[must_use]
pub fn replay(config: PolicyConfig, load: &Workload) -> (Figures, Vec<Told>) {
    let mut decider = Decider::new(config, load).telling();
    let figures = world::run(load, &mut decider, SEED);
    (figures, decider.told())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_and_replayed() {
        let text = "service_ms, at_ms,size\n100,0,9\n 150.5 ,2000,9\n100,1000,9\n";
        let requests = read(text).unwrap();
        assert_eq!((requests[1].at, requests[1].service), (2_000, 150));
        let load = load(requests, Function::default(), 0);
        assert!(load.requests.is_sorted_by_key(|r| r.at));
        let (figures, told) = replay(PolicyConfig::default(), &load);
        assert_eq!((figures.misses, told[0].from, told[0].to), (0, 0, 1));
        assert!(!told[0].reasons.is_empty());
        assert_eq!(told.last().map(|t| t.to), Some(0));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let wrong = |text: &str| read(text).unwrap_err().to_string();
        assert!(wrong("at,service_ms\n1,1\n").contains("no column at_ms"));
        assert!(wrong("at_ms,service_ms\n").contains("no requests"));
        assert!(wrong("at_ms,service_ms\n1,2\n1,-2\n").starts_with("line 3: service_ms is \"-2\""));
        assert!(wrong("at_ms,service_ms\nx,2\n").contains("at_ms is \"x\""));
        assert!(wrong("at_ms,service_ms\n1\n").starts_with("line 2"));
    }
}
