//! Who gets the GPU cards when fewer are there than are wanted: weighted max-min fairness in whole cards, with priorities that
//! waiting raises. Pure; see `README.md`, "Cards".
use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use crate::decide::{Decision, Observation};
use crate::reason::Reason;

/// A function that holds cards and works is not asked to give up its last pod for so long after its first one was ready, ms: shorter
/// turns would be spent on cold starts.
pub const TURN_MS: u64 = 30_000;
/// For so long a first pod may start before the turn counts as over, in times of what a start takes, and within bounds, ms. The least is
/// long since starts that never came to an end have taught nothing.
const STARTS: u64 = 4;
const LEAST_START_MS: u64 = 120_000;
const MOST_START_MS: u64 = 600_000;
/// For each such time without a card a function counts as one priority higher, ms.
pub const AGEING_MS: u64 = 10_000;

/// Whether a function has cards or waits for its first, and since when. Kept from look to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Turn {
    /// Since when it has had cards, ms since 1970.
    pub holds_ms: Option<i64>,
    /// Since when one of its pods has taken work with them, ms since 1970.
    pub ready_ms: Option<i64>,
    /// Since when it has wanted a card and had none, ms since 1970.
    pub waits_ms: Option<i64>,
}

impl Turn {
    /// Takes in what a function was granted at a moment.
    pub fn note(&mut self, granted: u32, claim: &Claim, now_ms: i64) {
        if granted > 0 {
            self.waits_ms = None;
            self.holds_ms.get_or_insert(now_ms);
            if claim.ready {
                self.ready_ms.get_or_insert(now_ms);
            }
        } else {
            (self.holds_ms, self.ready_ms) = (None, None);
            if claim.working {
                self.waits_ms.get_or_insert(now_ms);
            } else {
                self.waits_ms = None;
            }
        }
    }
}

/// What one function asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Pods that its law asks for.
    pub wanted: u32,
    /// Cards of one pod, at least 1.
    pub cards: u32,
    /// Its share of what is left when each has its first pod, against others of its priority; at least 1.
    pub weight: u32,
    /// Higher goes first.
    pub priority: i32,
    /// Whether it has work; else it is only kept warm, or has a minimum.
    pub working: bool,
    /// Whether a pod of it takes work.
    pub ready: bool,
    /// How long a start of it takes, ms.
    pub start_ms: u64,
    /// Its turn so far.
    pub turn: Turn,
    /// Whether another function does its work while it has no card. Then it goes after those of its priority that have nobody, and
    /// waiting does not raise it.
    pub fallback: bool,
}

/// Pods for which cards are asked. To be kept warm is no reason to start: a pod that had to give its card away does not come back
/// without work, or work that is on its way. `always` is the number that its owner wants in any case.
#[must_use]
pub fn wanted(seen: &Observation, decision: &Decision, always: u32) -> u32 {
    let desired = decision.desired;
    let by_the_clock = || decision.reasons.iter().any(|r| matches!(r, Reason::Expected { .. }));
    if seen.has_work() || seen.expected > 0 || by_the_clock() {
        return desired;
    }
    desired.min(always.max(seen.ready.saturating_add(seen.starting)))
}

/// Where a claim stands in the queue for first pods; smaller is sooner.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Works, and its turn is not over.
    InTurn(Reverse<i32>),
    /// Works, by priority with age; of equals those whom nobody stands in for, then those who wait, the longest wait first, then
    /// those who hold.
    Works(Reverse<i64>, bool, bool, Reverse<u64>),
    /// Has no work; those that hold a card first.
    Idle(Reverse<i32>, bool),
}

fn since(from: i64, now_ms: i64) -> u64 {
    u64::try_from(now_ms.saturating_sub(from)).unwrap_or(0)
}

/// A turn begins with the first pod that is ready, or functions that start for longer than a turn would take the card from each other
/// for ever; but not for one that never is.
fn in_turn(claim: &Claim, now_ms: i64) -> bool {
    let turn = &claim.turn;
    let start_ms = claim
        .start_ms
        .saturating_mul(STARTS)
        .clamp(LEAST_START_MS, MOST_START_MS);
    match (turn.ready_ms, turn.holds_ms) {
        (Some(from), _) => since(from, now_ms) < TURN_MS,
        (None, from) => from.is_some_and(|from| since(from, now_ms) < start_ms),
    }
}

fn rank(claim: &Claim, now_ms: i64) -> Rank {
    let holds = claim.turn.holds_ms.is_some();
    if !claim.working {
        return Rank::Idle(Reverse(claim.priority), !holds);
    }
    if in_turn(claim, now_ms) {
        return Rank::InTurn(Reverse(claim.priority));
    }
    let waited = claim.turn.waits_ms.map_or(0, |from| since(from, now_ms));
    let age = match claim.fallback {
        true => 0,
        false => i64::try_from(waited / AGEING_MS).unwrap_or(i64::MAX),
    };
    Rank::Works(
        Reverse(i64::from(claim.priority).saturating_add(age)),
        claim.fallback,
        holds,
        Reverse(waited),
    )
}

/// How many pods each claim gets of `total` cards, in the order of the claims; claims that are equal in all else are served in
/// that order. The sum over `granted x cards` is never over `total`.
///
/// First pods: those whose turn is not over, then by priority, where each [`AGEING_MS`] of waiting counts for one, then those
/// without work. A working claim that does not fit yet keeps what is free for itself, so that one which needs many cards is not
/// starved by many that need few. Then the rest, among those that work, by priority, and within one priority always to the claim
/// with the fewest cards for its weight (weighted max-min fairness, in whole pods); then among those without work.
#[must_use]
pub fn share(total: u32, claims: &[Claim], now_ms: i64) -> Vec<u32> {
    let mut granted = vec![0_u32; claims.len()];
    let mut free = total;
    let mut queue: Vec<usize> = (0..claims.len())
        .filter(|i| claims[*i].wanted > 0 && cards(&claims[*i]) <= total)
        .collect();
    queue.sort_by_key(|i| (rank(&claims[*i], now_ms), *i));
    for i in queue {
        let claim = &claims[i];
        if cards(claim) <= free {
            granted[i] = 1;
            free -= cards(claim);
        } else if claim.working {
            return granted;
        }
    }
    while let Some(i) = next(claims, &granted, free) {
        granted[i] += 1;
        free -= cards(&claims[i]);
    }
    granted
}

fn cards(claim: &Claim) -> u32 {
    claim.cards.max(1)
}

/// Whose pod comes next when each has its first.
fn next(claims: &[Claim], granted: &[u32], free: u32) -> Option<usize> {
    let open = (0..claims.len()).filter(|i| granted[*i] > 0 && granted[*i] < claims[*i].wanted);
    open.filter(|i| cards(&claims[*i]) <= free).min_by(|a, b| {
        let (x, y) = (&claims[*a], &claims[*b]);
        // Cards for the weight, compared as fractions without rounding.
        let has = |i: usize, claim: &Claim| u64::from(granted[i]) * u64::from(cards(claim));
        let (left, right) = (
            u128::from(has(*a, x)) * u128::from(y.weight.max(1)),
            u128::from(has(*b, y)) * u128::from(x.weight.max(1)),
        );
        (Reverse(x.working), Reverse(x.priority), left, a).cmp(&(Reverse(y.working), Reverse(y.priority), right, b))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Memory, PolicyConfig, decide};

    fn wants(wanted: u32) -> Claim {
        Claim {
            wanted,
            cards: 1,
            weight: 1,
            priority: 0,
            working: wanted > 0,
            ready: false,
            start_ms: 1_000,
            turn: Turn::default(),
            fallback: false,
        }
    }

    #[test]
    fn cards_are_shared_by_weight_and_what_one_does_not_want_goes_to_the_others() {
        assert_eq!(share(9, &[wants(9), wants(9), wants(9)], 0), [3, 3, 3]);
        assert_eq!(share(9, &[wants(1), wants(9), wants(9)], 0), [1, 4, 4]);
        let heavy = Claim { weight: 2, ..wants(9) };
        assert_eq!(share(9, &[heavy, wants(9)], 0), [6, 3]);
        let wide = Claim { cards: 2, ..wants(9) };
        assert_eq!(share(8, &[wide, wants(9)], 0), [2, 4]);
        let urgent = Claim {
            priority: 1,
            ..wants(9)
        };
        assert_eq!(
            share(9, &[wants(9), urgent], 0),
            [1, 8],
            "each has one, the rest is by priority"
        );
        assert_eq!(share(0, &[wants(1)], 0), [0]);
        let impossible = Claim { cards: 5, ..wants(1) };
        assert_eq!(
            share(4, &[impossible, wants(1)], 0),
            [0, 1],
            "it cannot ever be served, and blocks nobody"
        );
    }

    #[test]
    fn a_pod_that_is_only_kept_warm_gives_its_card_to_work_at_once() {
        let warm = Claim {
            working: false,
            turn: Turn {
                holds_ms: Some(0),
                ..Turn::default()
            },
            ..wants(1)
        };
        assert_eq!(share(1, &[warm, wants(1)], 1), [0, 1]);
        assert_eq!(share(2, &[warm, wants(1)], 1), [1, 1]);
    }

    #[test]
    fn whose_work_is_done_elsewhere_lets_the_others_go_first() {
        let lent = Claim {
            fallback: true,
            turn: Turn {
                waits_ms: Some(0),
                ..Turn::default()
            },
            ..wants(1)
        };
        assert_eq!(share(1, &[lent, wants(1)], 100_000), [0, 1]);
        assert_eq!(share(2, &[lent, wants(1)], 100_000), [1, 1]);
        let urgent = Claim { priority: 1, ..lent };
        assert_eq!(share(1, &[urgent, wants(1)], 100_000), [1, 0]);
    }

    #[test]
    fn one_that_needs_many_cards_is_not_starved_by_many_that_need_one() {
        let waits = Turn {
            waits_ms: Some(0),
            ..Turn::default()
        };
        let big = Claim {
            cards: 4,
            turn: waits,
            ..wants(1)
        };
        let holds = Turn {
            holds_ms: Some(50_000),
            ready_ms: Some(90_000),
            waits_ms: None,
        };
        let small = Claim {
            turn: holds,
            ..wants(1)
        };
        assert_eq!(
            share(4, &[small, small, wants(1), big], 100_000),
            [1, 1, 0, 0],
            "what is free is kept for it"
        );
        assert_eq!(
            share(4, &[small, small, wants(1), big], 121_000),
            [0, 0, 0, 1],
            "and then it has its turn"
        );
    }

    /// Two functions that always work, and one card, looked at each second for an hour. Gives back for how many seconds each had a pod
    /// that was ready; `None` starts for ever.
    fn an_hour(starts_s: [Option<u32>; 2]) -> [u32; 2] {
        let (mut claims, mut held_s, mut worked_s) = ([wants(3); 2], [0; 2], [0; 2]);
        for second in 0..3_600 {
            let granted = share(1, &claims, second * 1_000);
            for i in 0..2 {
                held_s[i] = if granted[i] > 0 { held_s[i] + 1 } else { 0 };
                claims[i].ready = starts_s[i].is_some_and(|s| held_s[i] > s);
                worked_s[i] += u32::from(claims[i].ready);
                let claim = claims[i];
                claims[i].turn.note(granted[i], &claim, second * 1_000);
            }
        }
        worked_s
    }

    #[test]
    fn a_turn_is_as_long_as_ever_after_a_start_that_takes_longer_than_a_turn() {
        let worked_s = an_hour([Some(45), Some(45)]);
        // Of each 75 s, 30 are work.
        assert!(worked_s.iter().all(|s| (660..780).contains(s)), "{worked_s:?}");
    }

    #[test]
    fn one_that_never_starts_gives_the_card_back() {
        let [never, other] = an_hour([None, Some(0)]);
        assert!(never == 0 && other > 600, "{other} s");
    }

    #[test]
    fn a_pod_for_work_that_comes_by_the_clock_may_start_and_one_that_is_kept_warm_may_not() {
        let seen = Observation {
            backlog: Some(0),
            ..Observation::default()
        };
        let (_, mut decision) = decide(&PolicyConfig::default(), &Memory::default(), &seen);
        decision.desired = 2;
        assert_eq!(wanted(&seen, &decision, 0), 0);
        decision.grant(0, 0, 1);
        assert!(
            !decision.reasons.iter().any(|r| matches!(r, Reason::Cards { .. })),
            "it did not ask for one"
        );
        decision.desired = 2;
        decision.reasons = vec![Reason::Expected {
            idle_ms: 1,
            until_ms: 2,
            pauses: 5,
        }];
        assert_eq!(wanted(&seen, &decision, 0), 2);
        decision.grant(1, 2, 1);
        let told = decision.reasons.last();
        assert!(
            matches!(
                told,
                Some(Reason::Cards {
                    wanted: 2,
                    granted: 1,
                    cards: 1
                })
            ),
            "{told:?}"
        );
    }

    fn claims() -> impl Strategy<Value = Vec<Claim>> {
        let claim = (
            0..9_u32,
            1..5_u32,
            1..5_u32,
            -3..4_i32,
            any::<bool>(),
            proptest::option::of(-100_000..0_i64),
            any::<bool>(),
            any::<bool>(),
            0..400_000_u64,
        );
        let claim = claim.prop_map(
            |(wanted, cards, weight, priority, working, at, holds, fallback, start_ms)| Claim {
                wanted,
                cards,
                weight,
                priority,
                working,
                ready: start_ms % 2 == 0,
                start_ms,
                turn: Turn {
                    holds_ms: at.filter(|_| holds),
                    ready_ms: at.filter(|_| holds && start_ms % 2 == 0),
                    waits_ms: at.filter(|_| !holds && working),
                },
                fallback,
            },
        );
        proptest::collection::vec(claim, 0..12)
    }

    proptest! {
        #[test]
        fn never_more_than_there_is_nor_than_was_asked_for(claims in claims(), total in 0..20_u32) {
            let granted = share(total, &claims, 0);
            let used: u32 = granted.iter().zip(&claims).map(|(n, c)| n * c.cards).sum();
            prop_assert!(used <= total);
            prop_assert!(granted.iter().zip(&claims).all(|(n, c)| *n <= c.wanted));
        }

        #[test]
        fn time_is_relative(claims in claims(), total in 0..20_u32, shift in -1_000_000..1_000_000_i64) {
            let moved: Vec<Claim> = claims
                .iter()
                .map(|c| Claim {
                    turn: Turn {
                        holds_ms: c.turn.holds_ms.map(|t| t + shift),
                        ready_ms: c.turn.ready_ms.map(|t| t + shift),
                        waits_ms: c.turn.waits_ms.map(|t| t + shift),
                    },
                    ..*c
                })
                .collect();
            prop_assert_eq!(share(total, &claims, 0), share(total, &moved, shift));
        }

        /// Whoever always wants a card, against any others that always want all: it has one within the turns of all others and the
        /// age that makes up for the difference of priorities. Some are never ready.
        #[test]
        fn age_beats_priority(claims in claims(), total in 4..9_u32) {
            let mut claims: Vec<Claim> =
                claims.into_iter().map(|c| Claim { wanted: c.wanted.max(1), working: true, turn: Turn::default(), ..c }).collect();
            let mut served = vec![0_i64; claims.len()];
            // Each round of turns serves at least one more of those who wait; 6 priorities apart is the most there is.
            let bound = i64::try_from((MOST_START_MS + TURN_MS + 7 * AGEING_MS) * (claims.len() as u64 + 1)).unwrap();
            for now_ms in (0..2 * bound).step_by(5_000) {
                let granted = share(total, &claims, now_ms);
                for (i, claim) in claims.iter_mut().enumerate() {
                    let claimed = *claim;
                    claim.turn.note(granted[i], &claimed, now_ms);
                    if granted[i] > 0 || claim.fallback {
                        served[i] = now_ms;
                    }
                    prop_assert!(now_ms - served[i] <= bound, "claim {i} waits {} ms", now_ms - served[i]);
                }
            }
        }
    }
}
