//! What data is by its media type.

/// How data is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// JSON; as CloudEvents has it, also data without a media type.
    Json,
    /// Text.
    Text,
    /// Anything else, also several JSON values in one (`application/jsonl`, `application/json-seq`).
    Bytes,
}

impl Content {
    /// What data of a media type is. Parameters and case of the type do not matter.
    #[must_use]
    pub fn of(media_type: Option<&str>) -> Self {
        let Some(media_type) = media_type else {
            return Self::Json;
        };
        let essence = media_type.split(';').next().unwrap_or_default().trim();
        let (ty, subtype) = essence.split_once('/').unwrap_or_default();
        let subtype = subtype.to_ascii_lowercase();
        if subtype == "json" || subtype.ends_with("+json") {
            Self::Json
        } else if ty.eq_ignore_ascii_case("text") {
            Self::Text
        } else {
            Self::Bytes
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_media_type_is_json_by_its_whole_subtype() {
        for (media_type, content) in [
            (None, Content::Json),
            (Some("Application/JSON"), Content::Json),
            (Some("application/ld+json; charset=utf-8"), Content::Json),
            (Some("text/json"), Content::Json),
            (Some("text/plain"), Content::Text),
            (Some("application/jsonl"), Content::Bytes),
            (Some("application/json-seq"), Content::Bytes),
            (Some("image/png"), Content::Bytes),
            (Some(""), Content::Bytes),
        ] {
            assert_eq!(Content::of(media_type), content, "{media_type:?}");
        }
    }
}
