//! CPU and memory as Kubernetes writes them: `500m`, `2`, `256Mi`, `1Gi`.
use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{given}\" is not a quantity of {what}: write it as in Kubernetes, such as {example}")]
pub struct InvalidQuantity {
    given: String,
    what: &'static str,
    example: &'static str,
}

/// CPU in thousandths of a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cpu {
    /// Thousandths of a core.
    pub millis: u32,
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Memory {
    /// Bytes.
    pub bytes: u64,
}

impl std::str::FromStr for Cpu {
    type Err = InvalidQuantity;
    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        let bad = || InvalidQuantity {
            given: text.chars().take(40).collect(),
            what: "CPU",
            example: "500m or 2",
        };
        let millis = match text.strip_suffix('m') {
            Some(m) => m.parse::<u32>().map_err(|_| bad())?,
            None => {
                let cores: f64 = text.parse().map_err(|_| bad())?;
                if !(0.001..=1024.0).contains(&cores) {
                    return Err(bad());
                }
                // The range check above keeps this within u32.
                (cores * 1000.0).round() as u32
            }
        };
        if millis == 0 { Err(bad()) } else { Ok(Self { millis }) }
    }
}

impl std::str::FromStr for Memory {
    type Err = InvalidQuantity;
    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        let bad = || InvalidQuantity {
            given: text.chars().take(40).collect(),
            what: "memory",
            example: "256Mi or 1Gi",
        };
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let value: u64 = text[..split].parse().map_err(|_| bad())?;
        let unit: u64 = match &text[split..] {
            "" => 1,
            "k" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            _ => return Err(bad()),
        };
        value
            .checked_mul(unit)
            .filter(|b| *b > 0)
            .map(|bytes| Self { bytes })
            .ok_or_else(bad)
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.millis.is_multiple_of(1000) {
            write!(f, "{}", self.millis / 1000)
        } else {
            write!(f, "{}m", self.millis)
        }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bytes {
            b if b.is_multiple_of(1 << 30) => write!(f, "{}Gi", b >> 30),
            b if b.is_multiple_of(1 << 20) => write!(f, "{}Mi", b >> 20),
            b if b.is_multiple_of(1 << 10) => write!(f, "{}Ki", b >> 10),
            b => write!(f, "{b}"),
        }
    }
}

macro_rules! text_serde {
    ($type:ident, $pattern:literal, $example:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                #[derive(Deserialize)]
                #[serde(untagged)]
                enum Text<'a> {
                    Text(Cow<'a, str>),
                    Number(serde_json::Number),
                }
                // YAML reads `cpu: 2` as a number, which Kubernetes accepts too.
                match Text::deserialize(d)? {
                    Text::Text(t) => t.parse().map_err(serde::de::Error::custom),
                    Text::Number(n) => n.to_string().parse().map_err(serde::de::Error::custom),
                }
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
                json_schema!({"type": ["string", "number"], "pattern": $pattern, "description": $example})
            }
        }
    };
}
text_serde!(Cpu, "^[0-9]+(\\.[0-9]+)?m?$", "CPU as in Kubernetes, such as 500m or 2");
text_serde!(
    Memory,
    "^[0-9]+(k|M|G|Ki|Mi|Gi|Ti)?$",
    "memory as in Kubernetes, such as 256Mi or 1Gi"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_as_kubernetes_reads_them() {
        assert_eq!("500m".parse::<Cpu>().unwrap().millis, 500);
        assert_eq!("2".parse::<Cpu>().unwrap().millis, 2000);
        assert_eq!("0.5".parse::<Cpu>().unwrap().millis, 500);
        assert_eq!("256Mi".parse::<Memory>().unwrap().bytes, 256 << 20);
        assert_eq!("1Gi".parse::<Memory>().unwrap().to_string(), "1Gi");
        for bad in ["", "x", "0", "1.5Q", "-1"] {
            assert!(bad.parse::<Memory>().is_err() && bad.parse::<Cpu>().is_err(), "{bad}");
        }
    }
}
