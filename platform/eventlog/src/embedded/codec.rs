//! Bytes on disk: keys sort by topic, partition, offset, so that a partition is one range.

use bytes::{Buf, Bytes};

use crate::error::{LogError, Result};
use crate::types::{NewRecord, Record};

/// Layout of a stored record. A reader refuses versions that it does not know.
const RECORD_VERSION: u8 = 1;
const HAS_KEY: u8 = 1;
const HAS_VALUE: u8 = 2;

/// A partition by the topic's number on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tp {
    pub topic: u32,
    pub partition: u32,
}

impl Tp {
    pub fn prefix(self) -> [u8; 8] {
        let mut key = [0; 8];
        key[..4].copy_from_slice(&self.topic.to_be_bytes());
        key[4..].copy_from_slice(&self.partition.to_be_bytes());
        key
    }

    pub fn record_key(self, offset: i64) -> [u8; 16] {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&self.prefix());
        key[8..].copy_from_slice(&offset.to_be_bytes());
        key
    }

    /// Key of what belongs to this partition and to `name`: a record key, a group.
    pub fn named_key(self, name: &[u8]) -> Vec<u8> {
        [&self.prefix()[..], name].concat()
    }

    /// The partition and the rest of a key.
    pub fn split(key: &[u8]) -> Result<(Self, &[u8])> {
        let (topic, rest) = take_u32(key)?;
        let (partition, rest) = take_u32(rest)?;
        Ok((Self { topic, partition }, rest))
    }
}

pub fn take_u32(bytes: &[u8]) -> Result<(u32, &[u8])> {
    let (head, rest) = bytes.split_first_chunk().ok_or(LogError::Corrupt { what: "a key" })?;
    Ok((u32::from_be_bytes(*head), rest))
}

pub fn take_i64(bytes: &[u8]) -> Result<(i64, &[u8])> {
    let (head, rest) = bytes
        .split_first_chunk()
        .ok_or(LogError::Corrupt { what: "an offset" })?;
    Ok((i64::from_be_bytes(*head), rest))
}

/// What a record counts for in the usage of the log.
pub fn charge(encoded: &[u8]) -> u64 {
    encoded.len() as u64 + 16
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    // Records are at most 1 MiB, which is checked before.
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

pub fn encode_record(record: &NewRecord, timestamp_ms: i64) -> Vec<u8> {
    let mut out = Vec::with_capacity(record.size() + 18 + 8 * (record.headers.len() + 1));
    let flags = if record.key.is_some() { HAS_KEY } else { 0 } | if record.value.is_some() { HAS_VALUE } else { 0 };
    out.extend_from_slice(&[RECORD_VERSION, flags]);
    out.extend_from_slice(&timestamp_ms.to_be_bytes());
    if let Some(key) = &record.key {
        put(&mut out, key);
    }
    out.extend_from_slice(&(record.headers.len() as u32).to_be_bytes());
    for (name, value) in &record.headers {
        put(&mut out, name.as_bytes());
        put(&mut out, value);
    }
    if let Some(value) = &record.value {
        out.extend_from_slice(value);
    }
    out
}

/// The time in a stored record, without reading the rest.
pub fn record_timestamp(stored: &[u8]) -> Result<i64> {
    take_i64(stored.get(2..).unwrap_or_default()).map(|(ms, _)| ms)
}

pub fn decode_record(topic: &str, partition: u32, offset: i64, stored: &[u8]) -> Result<Record> {
    const BAD: LogError = LogError::Corrupt { what: "a record" };
    // One copy; key, headers and value are views of it.
    let mut rest = Bytes::copy_from_slice(stored);
    if rest.len() < 10 || rest[0] != RECORD_VERSION {
        return Err(BAD);
    }
    let flags = rest[1];
    rest.advance(2);
    let timestamp_ms = rest.get_i64();
    let take = |rest: &mut Bytes| -> Result<Bytes> {
        let length = rest.try_get_u32().map_err(|_| BAD)? as usize;
        if rest.len() < length {
            Err(BAD)
        } else {
            Ok(rest.split_to(length))
        }
    };
    let key = if flags & HAS_KEY != 0 {
        Some(take(&mut rest)?)
    } else {
        None
    };
    let count = rest.try_get_u32().map_err(|_| BAD)?;
    let mut headers = Vec::new();
    for _ in 0..count {
        let name = String::from_utf8(take(&mut rest)?.to_vec()).map_err(|_| BAD)?;
        headers.push((name, take(&mut rest)?));
    }
    let value = if flags & HAS_VALUE != 0 { Some(rest) } else { None };
    Ok(Record {
        topic: topic.to_owned(),
        partition,
        offset,
        timestamp_ms,
        key,
        headers,
        value,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes() -> impl Strategy<Value = Option<Bytes>> {
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from))
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_written(
            key in bytes(), value in bytes(), time in any::<i64>(),
            headers in proptest::collection::vec((".{0,8}", bytes()), 0..4),
        ) {
            let headers: Vec<_> = headers.into_iter().map(|(n, v)| (n, v.unwrap_or_default())).collect();
            let new = NewRecord { topic: "t".into(), key, headers, value, partition: None };
            let stored = encode_record(&new, time);
            let read = decode_record("t", 3, 9, &stored).unwrap();
            prop_assert_eq!(record_timestamp(&stored).unwrap(), time);
            prop_assert_eq!((read.key, read.headers, read.value, read.timestamp_ms), (new.key, new.headers, new.value, time));
        }

        #[test]
        fn damaged_bytes_are_an_error_or_a_record_but_never_a_panic(junk in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut junk = junk;
            if let Some(first) = junk.first_mut() { *first = RECORD_VERSION; }
            let _ = decode_record("t", 0, 0, &junk);
        }

        #[test]
        fn keys_sort_by_topic_then_partition_then_offset(a in any::<(u32, u32, u32)>(), b in any::<(u32, u32, u32)>()) {
            let key = |(topic, partition, offset): (u32, u32, u32)| Tp { topic, partition }.record_key(i64::from(offset));
            prop_assert_eq!(a.cmp(&b), key(a).cmp(&key(b)));
        }
    }
}
