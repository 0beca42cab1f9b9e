//! Policies as the world asks them.
use std::borrow::Cow;

use imageflow_decider::slots::{self, Claim, Turn, share};
use imageflow_decider::{Decision, Memory, Observation, PolicyConfig, PolicyKind, decide, explain};

use crate::workload::{Function, Kind, Ms, Workload};

/// One of the functions that are looked at, as it is seen.
#[derive(Debug, Clone)]
pub struct Look {
    /// Which function.
    pub function: u32,
    /// What is seen of it.
    pub seen: Observation,
}

/// Decides how many pods there shall be.
pub trait Policy {
    /// How many pods each of the functions shall have, in their order, and when it wants to be asked again although nothing happens
    /// there, if it does (ms).
    fn decide(&mut self, looks: &[Look]) -> Vec<(u32, Option<i64>)>;

    /// Whether it hears at once of work that meets zero pods.
    fn wakes(&self) -> bool {
        true
    }
}

/// A change that was decided, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// When, ms since the world began.
    pub at: Ms,
    /// Pods wanted before.
    pub from: u32,
    /// Pods wanted from then on.
    pub to: u32,
    /// Why, in one sentence.
    pub summary: String,
    /// Why, in order of weight.
    pub reasons: Vec<String>,
}

/// The decider with one of its laws.
pub struct Decider {
    /// What changed for each function, when it is wanted to be known.
    told: Option<Vec<Told>>,
    desired: Vec<u32>,
    begun_ms: Option<i64>,
    config: PolicyConfig,
    functions: Vec<Function>,
    gpus: u32,
    memories: Vec<Memory>,
    turns: Vec<Turn>,
}

impl Decider {
    /// For a workload; bounds, concurrency and patience are those of each function.
    #[must_use]
    pub fn new(config: PolicyConfig, load: &Workload) -> Self {
        Self {
            told: None,
            desired: vec![0; load.functions.len()],
            begun_ms: None,
            config,
            functions: load.functions.clone(),
            gpus: load.gpus,
            memories: vec![Memory::default(); load.functions.len()],
            turns: vec![Turn::default(); load.functions.len()],
        }
    }

    /// The same, and it remembers its changes.
    #[must_use]
    pub fn telling(mut self) -> Self {
        self.told = Some(Vec::new());
        self
    }

    /// The changes so far.
    #[must_use]
    pub fn told(&self) -> Vec<Told> {
        self.told.clone().unwrap_or_default()
    }

    fn tell(&mut self, index: usize, seen: &Observation, decision: &Decision) {
        let begun = *self.begun_ms.get_or_insert(seen.now_ms);
        let (from, to) = (self.desired[index], decision.desired);
        self.desired[index] = to;
        if self.told.is_none() || from == to {
            return;
        }
        let explained = explain(&self.config(&self.functions[index]), from, seen, decision);
        self.told.get_or_insert_default().push(Told {
            at: Ms::try_from(seen.now_ms - begun).unwrap_or(0),
            from,
            to,
            summary: explained.sentence,
            reasons: decision.reasons.iter().map(ToString::to_string).collect(),
        });
    }

    fn config(&self, function: &Function) -> PolicyConfig {
        let mut config = PolicyConfig {
            min: function.bounds.0,
            max: function.bounds.1,
            target: function.concurrency,
            drain_target_ms: function.patience,
            ..self.config.clone()
        };
        if let PolicyKind::Kpa(kpa) = &mut config.policy {
            kpa.container_concurrency = function.concurrency;
        }
        config
    }

    fn ours(&self) -> bool {
        self.config.policy == PolicyKind::Imageflow
    }
}

impl Policy for Decider {
    fn decide(&mut self, looks: &[Look]) -> Vec<(u32, Option<i64>)> {
        let (mut decided, mut claims) = (Vec::with_capacity(looks.len()), Vec::new());
        for look in looks {
            let index = look.function as usize;
            let function = &self.functions[index];
            let mut seen = Cow::Borrowed(&look.seen);
            if matches!(self.config.policy, PolicyKind::Lag(_)) && function.kind == Kind::Interactive {
                // KEDA's add-on for HTTP scales on the requests that wait or are worked on; here it finds them when it polls.
                let seen = seen.to_mut();
                seen.backlog = Some(u64::from(seen.held) + u64::from(seen.in_flight));
                (seen.held, seen.in_flight) = (0, 0);
                seen.partitions.clear();
            }
            let (memory, decision) = decide(&self.config(function), &self.memories[index], &seen);
            self.memories[index] = memory;
            if self.ours() && function.cards > 0 {
                let claim = Claim {
                    wanted: slots::wanted(&seen, &decision, function.bounds.0),
                    cards: function.cards,
                    weight: 1,
                    priority: 0,
                    working: seen.has_work(),
                    ready: seen.ready > 0,
                    start_ms: decision.figures.start_ms as u64,
                    turn: self.turns[index],
                    fallback: false,
                };
                claims.push((decided.len(), claim));
            }
            decided.push(decision);
        }
        if let Some(now_ms) = looks.first().map(|look| look.seen.now_ms) {
            let all: Vec<Claim> = claims.iter().map(|(_, claim)| *claim).collect();
            for ((i, claim), granted) in claims.iter().zip(share(self.gpus, &all, now_ms)) {
                decided[*i].grant(granted, claim.wanted, self.gpus);
                self.turns[looks[*i].function as usize].note(granted, claim, now_ms);
            }
        }
        for (look, decision) in looks.iter().zip(&decided) {
            self.tell(look.function as usize, &look.seen, decision);
        }
        decided.into_iter().map(|d| (d.desired, d.look_again_ms)).collect()
    }

    fn wakes(&self) -> bool {
        !matches!(self.config.policy, PolicyKind::Lag(_))
    }
}
