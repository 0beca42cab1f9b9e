//! Names as newtypes, so that a flow's name cannot stand where a function's is wanted.
use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

/// Why a name was refused. The message names the rule and the offending text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{kind} name \"{given}\" is not valid: use 1 to {max} characters of a-z, 0-9 and '-', starting with a letter and ending with a letter or digit"
)]
pub struct InvalidName {
    /// What kind of name it is, for the message.
    pub kind: &'static str,
    /// The text given, cut to 80 characters.
    pub given: String,
    /// The longest name allowed.
    pub max: usize,
}

fn check(kind: &'static str, text: &str, max: usize) -> Result<(), InvalidName> {
    let bytes = text.as_bytes();
    let inner = bytes
        .iter()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
    let starts = bytes.first().is_some_and(u8::is_ascii_lowercase);
    let ends = bytes.last().is_some_and(|b| *b != b'-');
    if inner && starts && ends && bytes.len() <= max {
        return Ok(());
    }
    Err(InvalidName {
        kind,
        given: text.chars().take(80).collect(),
        max,
    })
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $type(String);

        impl $type {
            /// Checks the text against the rule for names (RFC 1123 label that starts with a letter).
            ///
            /// # Errors
            /// [`InvalidName`] with the rule.
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
                let text = text.into();
                check($kind, &text, $max)?;
                Ok(Self(text))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        // Equality, order and hash are those of the text.
        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $type {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(d)?;
                Self::new(text.into_owned()).map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": $max})
            }
        }
    };
}

name!(
    /// A function. Unique in a cluster: topics, consumer groups and object keys use it.
    FunctionName, "function", 50
);
name!(
    /// A flow.
    FlowName, "flow", 50
);
name!(
    /// A trigger.
    TriggerName, "trigger", 50
);
name!(
    /// A step of a flow; unique within it.
    StepName, "step", 40
);
name!(
    /// An immutable revision of a function: `<function>-<number, 5 digits>`.
    RevisionName, "revision", 63
);

impl RevisionName {
    /// The name of a function's revision with that number (counted from 1).
    #[must_use]
    pub fn of(function: &FunctionName, number: u32) -> Self {
        Self(format!("{function}-{number:05}"))
    }
}

/// One run of a flow. Derived from what caused it, so that the same cause never makes two runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct RunId(String);

impl RunId {
    /// The id for a cause: the parts are hashed with their lengths, so ("ab","c") differs from ("a","bc").
    #[must_use]
    pub fn derive(parts: &[&str]) -> Self {
        Self(format!("run-{}", &digest(parts)[..24]))
    }

    /// An id as it came from outside (a URL, a message).
    ///
    /// # Errors
    /// [`InvalidName`] when it has other characters than a run id can have.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        check("run", text, 63)?;
        Ok(Self(text.to_owned()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// SHA-256 over length-prefixed parts, in lower-case hex: the base of every derived id and key.
#[must_use]
pub fn digest(parts: &[&str]) -> String {
    use sha2::Digest;
    let mut hash = sha2::Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hex::encode(hash.finalize())
}

/// The candidate nearest to what was typed, when near enough to be a likely slip.
#[must_use]
pub fn nearest<'a>(given: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(&given.to_lowercase(), &c.to_lowercase()), c))
        .filter(|(d, c)| *d <= 1 + c.len().max(given.len()) / 3)
        .min_by_key(|(d, _)| *d)
        .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_slash_is_refused_with_the_rule() {
        let error = FunctionName::new("a/b").unwrap_err();
        assert!(error.to_string().contains("a-z, 0-9"), "{error}");
        assert!(FunctionName::new("x".repeat(51)).is_err());
        assert!(FunctionName::new("1a").is_err() && FunctionName::new("").is_err() && FunctionName::new("a-").is_err());
        assert!(FunctionName::new("resize-2").is_ok());
    }

    #[test]
    fn run_ids_depend_on_where_the_parts_end() {
        assert_ne!(RunId::derive(&["ab", "c"]), RunId::derive(&["a", "bc"]));
        assert_eq!(RunId::derive(&["ab", "c"]), RunId::derive(&["ab", "c"]));
        assert!(RunId::parse(RunId::derive(&["x"]).as_str()).is_ok());
    }

    #[test]
    fn the_nearest_name_is_offered_only_when_near() {
        assert_eq!(nearest("widht", ["width", "height"]), Some("width"));
        assert_eq!(nearest("zzzzzz", ["width", "height"]), None);
    }
}
