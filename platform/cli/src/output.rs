//! Where text goes and how it looks.
use std::io::Write;

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;

use crate::args::Format;
use crate::client::Client;
use crate::error::CliError;

/// A line of a service. That nobody reads it any more is no reason to end: `println!` would panic.
macro_rules! say {
    ($($text:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($text)*)));
    }};
}
pub(crate) use say;

/// What a command needs to work.
pub struct Context {
    /// The platform.
    pub client: Client,
    /// How results are printed.
    pub format: Format,
    /// Whether colours may be used.
    pub color: bool,
    /// Whether somebody watches standard error, so that bars may move there.
    pub live: bool,
    /// Whether only results and errors are to be printed.
    pub quiet: bool,
    /// Standard output.
    pub out: Box<dyn Write + Send>,
    /// Standard error.
    pub err: Box<dyn Write + Send>,
    /// Milliseconds since the epoch, for ages.
    pub now_ms: i64,
}

impl Context {
    /// Prints a line.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn line(&mut self, text: impl AsRef<str>) -> Result<(), CliError> {
        writeln!(self.out, "{}", text.as_ref())
            .and_then(|()| self.out.flush())
            .map_err(CliError::Stdout)
    }

    /// Prints a note on standard error, where it does not mix with results.
    pub fn note(&mut self, text: impl AsRef<str>) {
        if self.quiet {
            return;
        }
        // Nobody can be told that standard error is closed.
        let _ = writeln!(self.err, "{}", text.as_ref());
    }

    /// Prints a value as JSON or YAML if that was asked for; says whether it did.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn structured(&mut self, value: &impl Serialize) -> Result<bool, CliError> {
        let text = match self.format {
            Format::Json => serde_json::to_string_pretty(value).map_err(|e| CliError::Failed(e.to_string()))?,
            Format::Yaml => serde_saphyr::to_string(value).map_err(|e| CliError::Failed(e.to_string()))?,
            _ => return Ok(false),
        };
        self.line(text.trim_end())?;
        Ok(true)
    }

    /// Prints items in the format that was asked for.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn list(
        &mut self,
        items: &[Value],
        name: impl Fn(&Value) -> String,
        columns: &[&str],
        row: impl Fn(&Value) -> Vec<String>,
    ) -> Result<(), CliError> {
        if self.structured(&items)? {
            return Ok(());
        }
        if self.format == Format::Name {
            return items.iter().try_for_each(|item| self.line(name(item)));
        }
        if items.is_empty() {
            self.note("nothing there");
            return Ok(());
        }
        let rows = items.iter().map(row).collect::<Vec<_>>();
        let text = table(columns, rows, self.color);
        self.line(text)
    }
}

/// A table without lines. Words that name a state are coloured if `color`.
#[must_use]
pub fn table(columns: &[&str], rows: impl IntoIterator<Item = Vec<String>>, color: bool) -> String {
    draw(Table::new(), columns, rows, color)
}

/// The same where cells are prose: on a terminal they are broken so that all fits. Others stay whole, to be copied.
#[must_use]
pub fn prose(columns: &[&str], rows: impl IntoIterator<Item = Vec<String>>, color: bool) -> String {
    let mut table = Table::new();
    table.set_content_arrangement(ContentArrangement::Dynamic);
    draw(table, columns, rows, color)
}

fn draw(mut table: Table, columns: &[&str], rows: impl IntoIterator<Item = Vec<String>>, color: bool) -> String {
    table.load_preset(presets::NOTHING);
    if color {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table.set_header(
        columns
            .iter()
            .map(|c| Cell::new(c.to_uppercase()).add_attribute(Attribute::Bold)),
    );
    for row in rows {
        table.add_row(row.into_iter().map(|text| match state_color(&text) {
            Some(color) => Cell::new(text).fg(color),
            None => Cell::new(text),
        }));
    }
    let text = table.to_string();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

fn state_color(text: &str) -> Option<Color> {
    match text {
        "succeeded" | "created" | "ready" => Some(Color::Green),
        "failed" => Some(Color::Red),
        "running" | "configured" | "retrying" => Some(Color::Yellow),
        "cancelled" | "skipped" | "unchanged" => Some(Color::DarkGrey),
        _ => None,
    }
}

/// Whether colours may be used: by flag, by `NO_COLOR` (not empty) and by what standard output is.
#[must_use]
pub fn color_wanted(no_color_flag: bool, no_color_env: Option<&str>, terminal: bool) -> bool {
    terminal && !no_color_flag && no_color_env.is_none_or(str::is_empty)
}

/// How long ago, in the largest unit that fits.
#[must_use]
pub fn age(now_ms: i64, then_ms: i64) -> String {
    let s = (now_ms - then_ms).max(0) / 1000;
    match s {
        0..120 => format!("{s}s"),
        120..7200 => format!("{}m", s / 60),
        7200..172_800 => format!("{}h", s / 3600),
        _ => format!("{}d", s / 86_400),
    }
}

/// Bytes in the largest binary unit that fits.
#[must_use]
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (bytes.max(1).ilog2() / 10).min(4);
    if unit == 0 {
        return format!("{bytes} B");
    }
    // Tenths by whole numbers: no floats for what is only shown.
    let tenths = (u128::from(bytes) * 10) >> (unit * 10);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit as usize])
}

/// The text at a JSON pointer; numbers and flags as text, `-` when there is none.
#[must_use]
pub fn at(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_used_only_when_everything_allows_them() {
        assert!(color_wanted(false, None, true));
        assert!(color_wanted(false, Some(""), true), "an empty NO_COLOR counts as unset");
        assert!(!color_wanted(false, Some("1"), true));
        assert!(!color_wanted(true, None, true));
        assert!(!color_wanted(false, None, false));
    }

    #[test]
    fn a_table_has_escapes_only_with_colours() {
        let rows = || vec![vec!["a".to_owned(), "failed".to_owned()]];
        let plain = table(&["name", "status"], rows(), false);
        assert_eq!(plain, " NAME  STATUS\n a     failed");
        assert!(table(&["name", "status"], rows(), true).contains('\u{1b}'));
    }

    #[test]
    fn sizes_and_ages_take_the_largest_unit_that_fits() {
        assert_eq!(
            (size(0), size(1023), size(1536)),
            ("0 B".into(), "1023 B".into(), "1.5 KiB".into())
        );
        assert_eq!(size(u64::MAX), "16777215.9 TiB");
        assert_eq!(
            (age(5_000, 0), age(600_000, 0), age(0, 10)),
            ("5s".into(), "10m".into(), "0s".into())
        );
    }
}
