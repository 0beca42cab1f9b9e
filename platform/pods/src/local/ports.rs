//! A port for each start.
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below are ports of well-known services.
const FIRST: u16 = 20_000;
/// A range with fewer ports is not worth it.
const LEAST: u16 = 2_000;

/// Gives ports in turn, outside the range that the kernel takes for connections that go out: from there a port that is free
/// now may belong to a connection, even to a probe of it, before the pod has bound it.
#[derive(Debug)]
pub struct Ports {
    range: Option<Range<u16>>,
    next: AtomicU32,
}

impl Ports {
    /// Begins somewhere, so that two platforms of one machine do not try the same ports in step.
    pub fn new(seed: u32) -> Self {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        Self {
            range: outside(&text),
            next: AtomicU32::new(seed),
        }
    }

    /// A port that nobody listens on now.
    pub fn take(&self) -> io::Result<u16> {
        let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        if let Some(range) = &self.range {
            let count = u32::from(range.end - range.start);
            for _ in 0..count {
                let step = self.next.fetch_add(1, Ordering::Relaxed) % count;
                let port = range.start.saturating_add(u16::try_from(step).unwrap_or(0));
                if bind(port).is_ok() {
                    return Ok(port);
                }
            }
        }
        Ok(bind(0)?.local_addr()?.port())
    }
}

fn outside(kernels: &str) -> Option<Range<u16>> {
    let mut bounds = kernels.split_whitespace().map(str::parse::<u16>);
    let (low, high) = (bounds.next()?.ok()?, bounds.next()?.ok()?);
    let below = FIRST..low.max(FIRST);
    let above = high.saturating_add(1).max(FIRST)..u16::MAX;
    [below, above]
        .into_iter()
        .find(|range| range.len() >= usize::from(LEAST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_lie_outside_the_kernels_own_range() {
        assert_eq!(outside("32768\t60999\n"), Some(20_000..32_768));
        assert_eq!(outside("15000 50000"), Some(50_001..65_535));
        assert_eq!(outside("1024 65535"), None);
        assert_eq!(outside(""), None);
    }

    #[test]
    fn a_port_is_not_given_twice_in_a_row_nor_while_it_is_used() {
        let ports = Ports::new(7);
        let first = ports.take().unwrap();
        let second = ports.take().unwrap();
        assert_ne!(first, second);
        let range = Some(second..second + 1);
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, second)).unwrap();
        assert_ne!(
            Ports {
                range,
                next: AtomicU32::new(0)
            }
            .take()
            .unwrap(),
            second
        );
        drop(taken);
    }
}
