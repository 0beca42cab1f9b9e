//! Attributes by name, for filters and headers.
use std::borrow::Cow;

use cloudevents::event::ExtensionValue;
use cloudevents::{AttributesReader, AttributesWriter, Event};

use crate::EventError;
use crate::ext::TRACEPARENT;

/// The value of an attribute or extension as filters see it.
#[must_use]
pub fn get(event: &Event, name: &str) -> Option<String> {
    if name == "specversion" {
        return Some(event.specversion().to_string());
    }
    if let Some((_, value)) = event.iter_attributes().find(|(n, _)| *n == name) {
        return Some(value.to_string());
    }
    crate::ext::text(event, name)
}

/// Most extensions of an event. Debezium, which has the most of those known, sets some thirty, and servers of HTTP take 100
/// headers as a rule; a map of headers in memory panics at 24,577.
pub const MOST_EXTENSIONS: usize = 100;
/// Longest name of an extension, in characters. CloudEvents asks for no more than 20 but takes more: Debezium has 31.
pub const LONGEST_NAME: usize = 64;
/// Longest value of an attribute or extension, in bytes.
pub const LONGEST_VALUE: usize = 8 * 1024;
/// Most bytes of all attributes and extensions, names and values together: no less than CloudEvents has everybody pass on, and
/// with the data within the size of a record.
pub const MOST_BYTES: usize = 64 * 1024;

/// Checks what the SDK does not: non-empty required attributes, the length and letters of names, how many there are and how
/// large they are. `traceparent` is not counted: the gateway adds it to an event that has passed, whose record is to pass, too.
///
/// # Errors
/// [`EventError::Attribute`] naming the attribute and the rule, [`EventError::TooManyExtensions`],
/// [`EventError::AttributesTooLarge`].
pub fn check(event: &Event) -> Result<(), EventError> {
    let fault = |name: &str, why| EventError::Attribute {
        name: name.chars().take(40).collect(),
        why,
    };
    for (name, value) in [
        ("id", event.id()),
        ("type", event.ty()),
        ("source", &event.source().to_string()),
    ] {
        if value.is_empty() {
            return Err(fault(name, "is empty"));
        }
    }
    let counted = event.iter_extensions().filter(|(name, _)| *name != TRACEPARENT);
    if counted.count() > MOST_EXTENSIONS {
        return Err(EventError::TooManyExtensions);
    }
    let mut bytes = 0;
    for (name, value) in event.iter() {
        let length = value.to_string().len();
        if length > LONGEST_VALUE {
            return Err(fault(name, "is longer than 8192 bytes"));
        }
        if name != TRACEPARENT {
            bytes += name.len() + length;
        }
    }
    if bytes > MOST_BYTES {
        return Err(EventError::AttributesTooLarge { bytes });
    }
    for (name, _) in event.iter_extensions() {
        if name.is_empty() || name.len() > LONGEST_NAME {
            return Err(fault(name, "has a name that is not 1 to 64 characters long"));
        }
        if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            return Err(fault(name, "has a name with other characters than a-z and 0-9"));
        }
    }
    Ok(())
}

/// Undoes the percent-encoding that the HTTP binding prescribes for header values.
pub(crate) fn decode_percent(event: &mut Event) {
    let changed = |text: &str| match decode(text) {
        Cow::Owned(decoded) => Some(decoded),
        Cow::Borrowed(_) => None,
    };
    if let Some(id) = changed(event.id()) {
        event.set_id(id);
    }
    if let Some(ty) = changed(event.ty()) {
        event.set_type(ty);
    }
    if let Some(subject) = event.subject().and_then(changed) {
        event.set_subject(Some(subject));
    }
    let source = decode_uri(&event.source().to_string());
    event.set_source(source);
    let schema = event
        .dataschema()
        .map(|schema| schema.join(&decode_uri(schema.as_str())));
    if let Some(Ok(schema)) = schema {
        event.set_dataschema(Some(schema));
    }
    let encoded: Vec<(String, String)> = event
        .iter_extensions()
        .filter_map(|(name, value)| match value {
            ExtensionValue::String(text) => Some((name.to_owned(), changed(text)?)),
            _ => None,
        })
        .collect();
    for (name, value) in encoded {
        event.set_extension(&name, value);
    }
}

/// Percent-encodes what a header value may not hold: controls, space, `"`, `%` and all beyond ASCII.
pub(crate) fn encode(text: &str) -> Cow<'_, str> {
    let plain = |byte: u8| matches!(byte, 0x21 | 0x23 | 0x24 | 0x26..=0x7e);
    if text.bytes().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    Cow::Owned(out)
}

/// A URI, whose own encoding is part of it: it stays when nothing was encoded on top of it.
fn decode_uri(text: &str) -> String {
    let decoded = decode(text);
    let is_uri = decoded.bytes().all(|b| matches!(b, 0x21 | 0x23..=0x7e));
    if is_uri { decoded.into_owned() } else { text.to_owned() }
}

/// What a header value of the HTTP binding stands for.
pub(crate) fn decode_header(text: &str) -> Cow<'_, str> {
    match unquote(text) {
        Cow::Borrowed(text) => decode(text),
        Cow::Owned(text) => Cow::Owned(decode(&text).into_owned()),
    }
}

/// Undoes the double quotes around a header value, in which `\` stands before what is to be taken as it is. The HTTP binding had
/// values with spaces quoted before they were percent-encoded, and has them read. What is not quoted as a whole stays.
pub(crate) fn unquote(text: &str) -> Cow<'_, str> {
    let Some(inner) = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return Cow::Borrowed(text);
    };
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(char) = chars.next() {
        match char {
            '"' => return Cow::Borrowed(text),
            '\\' => match chars.next() {
                Some(escaped) => out.push(escaped),
                None => return Cow::Borrowed(text),
            },
            plain => out.push(plain),
        }
    }
    Cow::Owned(out)
}

fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let digits = match bytes[i] {
            b'%' => digit(i + 1).zip(digit(i + 2)),
            _ => None,
        };
        match digits.and_then(|(high, low)| u8::try_from(high * 16 + low).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 3;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8(out).map_or(Cow::Borrowed(text), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_values_survive_encoding() {
        for text in [
            "raw-images/a b.jpg",
            "Grüße \"x\" 100%",
            "http://h/p?X=a%2Fb",
            "%zz",
            "plain",
        ] {
            assert_eq!(decode(&encode(text)), text);
            assert!(encode(text).is_ascii());
        }
    }

    #[test]
    fn only_two_hexadecimal_digits_stand_for_a_byte() {
        for text in ["%+5", "%5", "%", "100%", "% 5", "%-1", "a%zz"] {
            assert_eq!(decode(text), text);
        }
        assert_eq!(decode("%2b5%2B"), "+5+");
    }
}
