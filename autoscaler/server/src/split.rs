//! How the pods of a function are shared among its revisions.
use std::collections::BTreeMap;

use imageflow_types::RevisionName;

use crate::inputs::RevisionShare;

/// Shares `pods` by each revision's own work, and by the traffic what of the backlog is bound to no revision yet.
///
/// A revision that has work of its own gets at least one pod, even when that makes more than `pods` in all: runs are
/// bound to the revision they began with. Without any work the traffic alone decides. The sum is `pods` otherwise.
pub fn split(
    pods: u32,
    traffic: &[RevisionShare],
    own_work: &BTreeMap<RevisionName, u64>,
    backlog: u64,
) -> BTreeMap<RevisionName, u32> {
    let percent: u64 = traffic.iter().map(|t| u64::from(t.percent)).sum();
    let mut weights: BTreeMap<&RevisionName, f64> = BTreeMap::new();
    for share in traffic.iter().filter(|t| t.percent > 0) {
        let part = f64::from(share.percent) / percent as f64;
        *weights.entry(&share.revision).or_default() += part * backlog as f64;
    }
    for (revision, work) in own_work {
        *weights.entry(revision).or_default() += *work as f64;
    }
    if weights.values().all(|w| *w <= 0.0) {
        for share in traffic {
            *weights.entry(&share.revision).or_default() += f64::from(share.percent);
        }
    }
    let total: f64 = weights.values().sum();
    let mut shares: Vec<(&RevisionName, u32, f64)> = weights
        .iter()
        .map(|(revision, weight)| {
            let exact = if total > 0.0 {
                f64::from(pods) * weight / total
            } else {
                0.0
            };
            (*revision, exact.floor() as u32, exact.fract())
        })
        .collect();
    // The largest remainders get what rounding left over; names break ties, so that equal input gives equal output.
    let given: u32 = shares.iter().map(|(_, n, _)| *n).sum();
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by(|a, b| {
        shares[*b]
            .2
            .total_cmp(&shares[*a].2)
            .then_with(|| shares[*b].0.cmp(shares[*a].0))
    });
    for at in order.into_iter().take(pods.saturating_sub(given) as usize) {
        shares[at].1 += 1;
    }
    let has_work = |revision: &RevisionName| own_work.get(revision).is_some_and(|w| *w > 0);
    for at in 0..shares.len() {
        if pods == 0 || shares[at].1 > 0 || !has_work(shares[at].0) {
            continue;
        }
        shares[at].1 = 1;
        // Taken from who has most, when that one keeps a pod.
        if let Some(rich) = shares.iter_mut().filter(|s| s.1 > 1).max_by_key(|s| s.1) {
            rich.1 -= 1;
        }
    }
    shares
        .into_iter()
        .map(|(revision, n, _)| (revision.clone(), n))
        .collect()
}

#[cfg(test)]
mod tests {
    use imageflow_types::FunctionName;

    use super::*;

    fn revision(n: u32) -> RevisionName {
        RevisionName::of(&FunctionName::new("f").unwrap(), n)
    }

    fn shared(pods: u32, percent: &[u32], own: &[(u32, u64)], backlog: u64) -> Vec<u32> {
        let traffic: Vec<RevisionShare> = percent
            .iter()
            .zip(1..)
            .map(|(percent, n)| RevisionShare {
                revision: revision(n),
                percent: *percent,
            })
            .collect();
        let own = own.iter().map(|(n, work)| (revision(*n), *work)).collect();
        split(pods, &traffic, &own, backlog).into_values().collect()
    }

    #[test]
    fn work_decides_and_without_it_the_traffic() {
        assert_eq!(shared(10, &[90, 10], &[], 1_000), [9, 1]);
        assert_eq!(shared(1, &[90, 10], &[], 0), [1, 0]);
        assert_eq!(shared(4, &[50, 50], &[(1, 30), (2, 10)], 0), [3, 1]);
        assert_eq!(shared(0, &[100], &[], 0), [0]);
    }

    #[test]
    fn a_revision_with_work_is_never_left_without_a_pod() {
        assert_eq!(shared(10, &[100], &[(1, 1_000), (2, 1)], 0), [9, 1]);
        assert_eq!(
            shared(1, &[100, 0], &[(1, 9), (2, 1)], 0),
            [1, 1],
            "both have runs that are bound to them"
        );
    }

    #[test]
    fn work_that_is_bound_to_a_canary_gets_the_pod_and_not_the_traffic() {
        assert_eq!(shared(1, &[90, 10], &[(2, 1)], 0), [0, 1]);
        assert_eq!(shared(2, &[90, 10], &[(2, 1)], 50), [1, 1]);
    }

    #[test]
    fn the_sum_is_what_was_decided() {
        for pods in 0..40 {
            assert_eq!(shared(pods, &[34, 33, 33], &[], 7).iter().sum::<u32>(), pods);
        }
    }
}
