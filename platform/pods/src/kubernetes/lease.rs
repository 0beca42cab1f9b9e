//! One of several processes works, the others wait: by a Lease of the Kubernetes API. Clocks of other machines are not compared:
//! a holder is gone when its lease has not changed for the lease's duration by our own clock.
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How leadership is held.
#[derive(Debug, Clone)]
pub struct LeaseConfig {
    /// Name of the lease.
    pub name: String,
    /// Namespace of the lease.
    pub namespace: String,
    /// Who asks: unique among those that do.
    pub holder: String,
    /// A lease that was not renewed for so long is free.
    pub duration: Duration,
    /// Between two renewals, or two looks.
    pub every: Duration,
}

impl LeaseConfig {
    /// Defaults: 15 s, renewed each 3 s.
    pub fn new(name: impl Into<String>, namespace: impl Into<String>, holder: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            namespace: namespace.into(),
            holder: holder.into(),
            duration: Duration::from_secs(15),
            every: Duration::from_secs(3),
        }
    }
}

/// How the work of a leader ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Led {
    /// It was told to stop, before or after it led.
    Stopped,
    /// The work ended by itself.
    Ended,
    /// The lease could not be renewed in time: another one may lead now, and the work was ended.
    Lost,
}

/// What to do about a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Renew,
    Take,
    Wait,
}

/// What was seen of another holder's lease, and since when it is like that.
type Observed = Option<(String, Instant)>;

fn step(spec: &LeaseSpec, config: &LeaseConfig, observed: &mut Observed, now: Instant) -> Step {
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    if holder == config.holder {
        return Step::Renew;
    }
    if holder.is_empty() {
        return Step::Take;
    }
    let seen = format!("{holder} {:?} {:?}", spec.renew_time, spec.lease_transitions);
    match observed {
        Some((known, since)) if *known == seen => {
            let theirs = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
            let duration = theirs.map_or(config.duration, Duration::from_secs);
            if now - *since > duration {
                Step::Take
            } else {
                Step::Wait
            }
        }
        _ => {
            *observed = Some((seen, now));
            Step::Wait
        }
    }
}

struct Holder<'a> {
    api: Api<Lease>,
    config: &'a LeaseConfig,
    observed: Observed,
}

impl Holder<'_> {
    /// Whether the lease is ours now.
    async fn hold(&mut self) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.api.get_opt(&self.config.name).await? else {
            let mut lease = Lease::default();
            lease.metadata.name = Some(self.config.name.clone());
            lease.spec = Some(self.spec(0));
            return Self::written(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let transitions = spec.lease_transitions.unwrap_or(0);
        let renewed = match step(&spec, self.config, &mut self.observed, Instant::now()) {
            Step::Wait => return Ok(false),
            Step::Renew => LeaseSpec {
                renew_time: Some(now()),
                ..spec
            },
            Step::Take => self.spec(transitions + 1),
        };
        lease.spec = Some(renewed);
        // With the version that was read: of two that take it one is refused.
        Self::written(
            self.api
                .replace(&self.config.name, &PostParams::default(), &lease)
                .await,
        )
    }

    fn spec(&self, transitions: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.config.holder.clone()),
            lease_duration_seconds: i32::try_from(self.config.duration.as_secs()).ok(),
            acquire_time: Some(now()),
            renew_time: Some(now()),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    fn written(result: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
        match result {
            Ok(lease) => {
                tracing::trace!(lease = lease.name_any(), "the lease is held");
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives it to whoever comes first.
    async fn release(&mut self) -> Result<(), kube::Error> {
        let Some(mut lease) = self.api.get_opt(&self.config.name).await? else {
            return Ok(());
        };
        let Some(spec) = lease
            .spec
            .as_mut()
            .filter(|s| s.holder_identity.as_ref() == Some(&self.config.holder))
        else {
            return Ok(());
        };
        spec.holder_identity = Some(String::new());
        Self::written(
            self.api
                .replace(&self.config.name, &PostParams::default(), &lease)
                .await,
        )
        .map(drop)
    }
}

fn now() -> MicroTime {
    MicroTime(Timestamp::now())
}

/// Waits until the lease is ours, then does `work` for as long as it is. The work gets a token that ends with `stop` and with the
/// lease.
pub async fn lead<F>(
    client: kube::Client,
    config: &LeaseConfig,
    stop: &CancellationToken,
    work: impl FnOnce(CancellationToken) -> F,
) -> Led
where
    F: Future<Output = ()>,
{
    let mut holder = Holder {
        api: Api::namespaced(client, &config.namespace),
        config,
        observed: None,
    };
    let mut every = tokio::time::interval(config.every);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Led::Stopped,
            _ = every.tick() => {}
        }
        match holder.hold().await {
            Ok(true) => break,
            Ok(false) => {}
            Err(error) => tracing::warn!(lease = config.name, %error, "leadership cannot be asked for"),
        }
    }
    tracing::info!(lease = config.name, holder = config.holder, "leads");
    let ours = stop.child_token();
    let work = work(ours.clone());
    tokio::pin!(work);
    let mut renewed = Instant::now();
    let led = loop {
        tokio::select! {
            () = &mut work => break if stop.is_cancelled() { Led::Stopped } else { Led::Ended },
            _ = every.tick() => {}
        }
        // One call may take no longer than what is left of the lease.
        let left = config.duration.saturating_sub(renewed.elapsed());
        match tokio::time::timeout(left, holder.hold()).await {
            Ok(Ok(true)) => renewed = Instant::now(),
            Ok(Ok(false)) => break Led::Lost,
            Ok(Err(error)) => tracing::warn!(lease = config.name, %error, "leadership is not renewed"),
            Err(_) => {}
        }
        if renewed.elapsed() + config.every > config.duration {
            break Led::Lost;
        }
    };
    ours.cancel();
    if led == Led::Lost {
        tracing::error!(lease = config.name, "leadership is lost");
        work.await;
        return led;
    }
    if let Err(error) = holder.release().await {
        tracing::debug!(lease = config.name, %error, "leadership runs out by itself");
    }
    led
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(by: &str, transitions: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(by.to_owned()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_lease_is_taken_only_when_it_stands_still_for_its_duration() {
        let config = LeaseConfig::new("l", "n", "me");
        let (begun, mut observed) = (Instant::now(), None);
        let after = |s: u64| begun + Duration::from_secs(s);
        assert_eq!(step(&held("me", 1), &config, &mut observed, begun), Step::Renew);
        assert_eq!(step(&held("", 1), &config, &mut observed, begun), Step::Take);
        assert_eq!(step(&held("you", 1), &config, &mut observed, begun), Step::Wait);
        assert_eq!(step(&held("you", 1), &config, &mut observed, after(14)), Step::Wait);
        // It has changed, so somebody lives.
        assert_eq!(step(&held("you", 2), &config, &mut observed, after(20)), Step::Wait);
        assert_eq!(step(&held("you", 2), &config, &mut observed, after(34)), Step::Wait);
        assert_eq!(step(&held("you", 2), &config, &mut observed, after(36)), Step::Take);
    }
}
