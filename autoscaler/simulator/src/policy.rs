//! Policies as the world asks them.
use imageflow_decider::slots::{Claim, Turn, share};
use imageflow_decider::{Memory, Observation, PolicyConfig, PolicyKind, decide};

use crate::workload::{Function, Kind, Workload};

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

/// The decider with one of its laws.
pub struct Decider {
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
            config,
            functions: load.functions.clone(),
            gpus: load.gpus,
            memories: vec![Memory::default(); load.functions.len()],
            turns: vec![Turn::default(); load.functions.len()],
        }
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
        let (mut answers, mut claims) = (Vec::with_capacity(looks.len()), Vec::new());
        for look in looks {
            let index = look.function as usize;
            let function = &self.functions[index];
            let mut seen = look.seen.clone();
            if matches!(self.config.policy, PolicyKind::Lag(_)) && function.kind == Kind::Interactive {
                // KEDA's add-on for HTTP scales on the requests that wait or are worked on.
                seen.backlog = Some(u64::from(seen.held) + u64::from(seen.in_flight));
                seen.partitions.clear();
            }
            let (memory, decision) = decide(&self.config(function), &self.memories[index], &seen);
            self.memories[index] = memory;
            if self.ours() && function.cards > 0 {
                let working = seen.has_work();
                let there = seen.ready.saturating_add(seen.starting);
                claims.push((
                    answers.len(),
                    Claim {
                        wanted: if working {
                            decision.desired
                        } else {
                            decision.desired.min(there)
                        },
                        cards: function.cards,
                        weight: 1,
                        priority: 0,
                        working,
                        turn: self.turns[index],
                    },
                ));
            }
            answers.push((decision.desired, decision.look_again_ms));
        }
        if let Some(now_ms) = looks.first().map(|look| look.seen.now_ms) {
            let all: Vec<Claim> = claims.iter().map(|(_, claim)| *claim).collect();
            for ((i, claim), granted) in claims.iter().zip(share(self.gpus, &all, now_ms)) {
                answers[*i].0 = granted;
                self.turns[looks[*i].function as usize].note(granted, claim.working, now_ms);
            }
        }
        answers
    }

    fn wakes(&self) -> bool {
        !matches!(self.config.policy, PolicyKind::Lag(_))
    }
}
