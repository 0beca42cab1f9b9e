//! Why so many pods: data for programs, a sentence for people.
use std::fmt;

use serde::{Deserialize, Serialize};

/// One reason of a decision. Times in ms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[expect(missing_docs, reason = "the sentence of each variant says what its numbers are")]
pub enum Reason {
    Pinned {
        replicas: u32,
    },
    Backlog {
        backlog: u64,
        service_ms: f64,
        target_ms: u64,
        slots: f64,
    },
    Overdue {
        oldest_ms: u64,
        target_ms: u64,
        factor: f64,
    },
    AtWork {
        in_flight: u32,
        held: u32,
        slots: f64,
    },
    Arrivals {
        per_second: f64,
        service_ms: f64,
        slots: f64,
        spare: f64,
    },
    NothingCompleted {
        in_flight: u32,
        for_ms: u64,
    },
    ServiceTimeGuessed {
        service_ms: f64,
    },
    AnyWork,
    OneEach {
        items: u64,
    },
    Growth {
        pods: u32,
        most: u32,
    },
    Cards {
        wanted: u32,
        granted: u32,
        cards: u32,
    },
    HandedOver {
        to: String,
    },
    StandsIn {
        of: String,
        items: u64,
    },
    Patience {
        wanted: u32,
        pods: u32,
        window_ms: u64,
    },
    KeptWarm {
        idle_ms: u64,
        keep_ms: u64,
        pauses: usize,
    },
    Expected {
        idle_ms: u64,
        until_ms: u64,
        pauses: usize,
    },
    Announced {
        steps: u32,
    },
    Unreached {
        records: u64,
    },
    SoonFree {
        held: u32,
        wait_ms: f64,
        start_ms: f64,
    },
    Idle {
        idle_ms: u64,
        keep_ms: u64,
    },
    Min {
        min: u32,
    },
    Max {
        wanted: u32,
        max: u32,
    },
    BacklogUnknown {
        kept: u32,
    },
    Kpa {
        stable: f64,
        panic: f64,
        target: f64,
        panicking: bool,
    },
    KpaHolds,
    KpaBegins {
        pods: u32,
    },
    Lag {
        lag: u64,
        threshold: u64,
    },
    LagCooling {
        cooldown_s: u32,
    },
}

impl Reason {
    /// Whether it says how well something is known.
    pub(crate) const fn is_doubt(&self) -> bool {
        matches!(self, Self::ServiceTimeGuessed { .. } | Self::NothingCompleted { .. })
    }

    /// Whether it held the number at another than the work asked for.
    pub(crate) const fn is_limit(&self) -> bool {
        matches!(
            self,
            Self::Max { .. }
                | Self::Min { .. }
                | Self::Cards { .. }
                | Self::HandedOver { .. }
                | Self::Growth { .. }
                | Self::OneEach { .. }
                | Self::Patience { .. }
                | Self::BacklogUnknown { .. }
                | Self::KpaHolds
                | Self::KpaBegins { .. }
                | Self::LagCooling { .. }
        )
    }

    /// For a decision that changes nothing: whether this reason is worth a note when it is new.
    #[must_use]
    pub const fn explains_staying(&self) -> bool {
        matches!(
            self,
            Self::KeptWarm { .. }
                | Self::BacklogUnknown { .. }
                | Self::Max { .. }
                | Self::Unreached { .. }
                | Self::Expected { .. }
                | Self::Announced { .. }
                | Self::Cards { .. }
                | Self::HandedOver { .. }
                | Self::StandsIn { .. }
                | Self::KpaHolds
                | Self::LagCooling { .. }
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pinned { replicas } => write!(f, "pinned to {replicas}"),
            Self::Backlog {
                backlog,
                service_ms,
                target_ms,
                slots,
            } => write!(
                f,
                "{backlog} waiting x {} each, to be done in {}: {slots:.1} slots",
                Ms(*service_ms),
                Ms(*target_ms as f64)
            ),
            Self::Overdue {
                oldest_ms,
                target_ms,
                factor,
            } => write!(
                f,
                "the oldest has waited {}, over the target of {}: x {factor:.1}",
                Ms(*oldest_ms as f64),
                Ms(*target_ms as f64)
            ),
            Self::AtWork { in_flight, held, slots } => {
                write!(f, "{in_flight} in flight and {held} callers held: {slots:.0} slots now")
            }
            Self::Arrivals {
                per_second,
                service_ms,
                slots,
                spare,
            } => {
                write!(
                    f,
                    "{per_second:.1} arrive each second x {} each: {slots:.1} slots",
                    Ms(*service_ms)
                )?;
                if *spare >= 0.05 {
                    write!(f, ", and {spare:.1} to spare for callers")?;
                }
                Ok(())
            }
            Self::NothingCompleted { in_flight, for_ms } => {
                write!(
                    f,
                    "nothing completed for {} with {in_flight} in flight: it takes at least that",
                    Ms(*for_ms as f64)
                )
            }
            Self::ServiceTimeGuessed { service_ms } => {
                write!(
                    f,
                    "too few completions to know the service time: {} for now",
                    Ms(*service_ms)
                )
            }
            Self::AnyWork => f.write_str("any work needs one pod"),
            Self::OneEach { items } => write!(f, "no more pods than the {items} pieces of work"),
            Self::Growth { pods, most } => write!(f, "{pods} asked for, at most {most} in one step"),
            Self::Cards { wanted, granted, cards } => {
                write!(f, "{wanted} asked for, its share of the {cards} GPU cards is {granted}")
            }
            Self::HandedOver { to } => write!(f, "no GPU card for it, so {to} does its work meanwhile"),
            Self::StandsIn { of, items } => {
                write!(f, "{items} pieces of work are those of {of}, which has no GPU card")
            }
            Self::Patience {
                wanted,
                pods,
                window_ms,
            } => {
                write!(
                    f,
                    "{wanted} would do now, {pods} were needed within the last {}",
                    Ms(*window_ms as f64)
                )
            }
            Self::KeptWarm {
                idle_ms,
                keep_ms,
                pauses,
            } => {
                write!(
                    f,
                    "no work for {}, kept warm for {}",
                    Ms(*idle_ms as f64),
                    Ms(*keep_ms as f64)
                )?;
                match pauses {
                    0 => Ok(()),
                    pauses => write!(f, ", cheapest by the last {pauses} pauses"),
                }
            }
            Self::Expected {
                idle_ms,
                until_ms,
                pauses,
            } => write!(
                f,
                "no work for {}, and by the last {pauses} pauses it comes before {}",
                Ms(*idle_ms as f64),
                Ms(*until_ms as f64)
            ),
            Self::Announced { steps } => write!(f, "from steps before it in a flow: {steps} on the way"),
            Self::Unreached { records } => {
                write!(
                    f,
                    "{records} records wait beside free slots: more pods would not get them"
                )
            }
            Self::SoonFree {
                held,
                wait_ms,
                start_ms,
            } => write!(
                f,
                "{held} callers have a slot in {}, sooner than a new pod's {}",
                Ms(*wait_ms),
                Ms(*start_ms)
            ),
            Self::Idle { idle_ms, keep_ms } => {
                write!(
                    f,
                    "no work for {}, kept warm for {}",
                    Ms(*idle_ms as f64),
                    Ms(*keep_ms as f64)
                )
            }
            Self::Min { min } => write!(f, "never fewer than {min}"),
            Self::Max { wanted, max } => write!(f, "{wanted} asked for, never more than {max}"),
            Self::Kpa {
                stable,
                panic,
                target,
                panicking,
            } => write!(
                f,
                "Knative's law: {stable:.1} at a time in the stable window, {panic:.1} in the panic window, {target:.1} a pod{}",
                if *panicking { ", in a panic" } else { "" }
            ),
            Self::KpaHolds => f.write_str("no traffic, and the last pod is held until the activator has taken over"),
            Self::KpaBegins { pods } => write!(f, "a new revision begins with at least {pods}"),
            Self::Lag { lag, threshold } => write!(f, "KEDA's law: a lag of {lag}, {threshold} a pod"),
            Self::LagCooling { cooldown_s } => write!(f, "no lag, zero pods after a cool-down of {cooldown_s} s"),
            Self::BacklogUnknown { kept } => write!(f, "the backlog is not known: {kept} kept"),
        }
    }
}

/// Milliseconds for people.
pub(crate) struct Ms(pub f64);

impl fmt::Display for Ms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ms if ms < 10.0 => write!(f, "{ms:.1} ms"),
            ms if ms < 1_000.0 => write!(f, "{ms:.0} ms"),
            ms if ms < 60_000.0 => write!(f, "{:.1} s", ms / 1_000.0),
            ms => write!(f, "{:.1} min", ms / 60_000.0),
        }
    }
}
