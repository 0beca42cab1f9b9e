//! W3C trace context as text: what goes from ingress through log, router, dispatcher and pod.
use std::fmt;

/// A `traceparent`: version 00, 16-byte trace id, 8-byte span id, flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// Trace id, not zero.
    pub trace_id: u128,
    /// Span id, not zero.
    pub span_id: u64,
    /// Flags; bit 0 means sampled.
    pub flags: u8,
}

impl TraceParent {
    /// Reads the header's text; `None` when it does not follow the specification.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let hex = |s: &str, len: usize| s.len() == len && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let whole = hex(version, 2) && hex(trace, 32) && hex(span, 16) && hex(flags, 2);
        if !whole || version == "ff" || (version == "00" && parts.next().is_some()) {
            return None;
        }
        let parsed = Self {
            trace_id: u128::from_str_radix(trace, 16).ok()?,
            span_id: u64::from_str_radix(span, 16).ok()?,
            flags: u8::from_str_radix(flags, 16).ok()?,
        };
        (parsed.trace_id != 0 && parsed.span_id != 0).then_some(parsed)
    }

    /// A new trace, sampled.
    #[must_use]
    pub fn generate() -> Self {
        Self {
            trace_id: uuid::Uuid::new_v4().as_u128(),
            span_id: random_span(),
            flags: 1,
        }
    }

    /// Another span of the same trace.
    #[must_use]
    pub fn child(self) -> Self {
        Self {
            span_id: random_span(),
            ..self
        }
    }
}

fn random_span() -> u64 {
    // The low half of a random UUID has 62 random bits and is never zero, because of its variant bits.
    uuid::Uuid::new_v4().as_u64_pair().1
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_reads_back_and_a_child_stays_in_the_trace() {
        let parent = TraceParent::generate();
        assert_eq!(TraceParent::parse(&parent.to_string()), Some(parent));
        let child = parent.child();
        assert_eq!(child.trace_id, parent.trace_id);
        assert_ne!(child.span_id, parent.span_id);
        for bad in [
            "",
            "00-0-0-01",
            &format!("ff-{:032x}-{:016x}-01", 1, 1),
            &format!("00-{:032x}-{:016x}-01", 0, 1),
        ] {
            assert_eq!(TraceParent::parse(bad), None, "{bad}");
        }
    }
}
