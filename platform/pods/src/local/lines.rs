//! What pods write, line by line.
use std::collections::{VecDeque, vec_deque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

use super::{LocalHost, now_ms};
use crate::host::{LogLine, PodSpec, Stream};
use crate::pod::PodId;

/// Longest line that is kept, in bytes; the rest of a longer one is dropped.
const LONGEST: usize = 8 << 10;
/// Lines of standard error that explain an end.
const LAST: usize = 3;
/// Most that is kept of a function, in bytes of text.
const MOST: usize = 1 << 20;

/// The last lines of a function, bounded by count and by size.
#[derive(Debug, Default)]
pub struct Kept {
    lines: VecDeque<LogLine>,
    bytes: usize,
}

impl Kept {
    pub fn push(&mut self, line: LogLine, most_lines: usize) {
        self.push_within(line, most_lines, MOST);
    }

    pub fn push_within(&mut self, line: LogLine, most_lines: usize, most_bytes: usize) {
        self.bytes += line.text.len();
        self.lines.push_back(line);
        while self.lines.len() > most_lines || self.bytes > most_bytes {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.text.len();
        }
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &LogLine> {
        self.lines.iter()
    }
}

impl IntoIterator for Kept {
    type Item = LogLine;
    type IntoIter = vec_deque::IntoIter<LogLine>;

    fn into_iter(self) -> Self::IntoIter {
        self.lines.into_iter()
    }
}

/// The last lines of standard error.
#[derive(Clone, Default)]
pub struct LastLines(Arc<Mutex<VecDeque<String>>>);

impl LastLines {
    fn push(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= LAST {
            lines.pop_front();
        }
        lines.push_back(line.chars().take(300).collect());
    }

    pub fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().cloned().collect::<Vec<_>>().join(" | ")
    }
}

/// Reads a stream to its end. It never stops earlier, whatever is written: a pipe that nobody reads would block the pod.
pub async fn follow(
    host: Arc<LocalHost>,
    spec: Arc<PodSpec>,
    pod: PodId,
    stream: Stream,
    reader: impl AsyncRead + Unpin,
    last: LastLines,
) {
    each_line(reader, |text| {
        if stream == Stream::Stderr {
            last.push(&text);
        }
        host.keep_line(LogLine {
            at_ms: now_ms(),
            function: spec.function.clone(),
            revision: spec.revision.clone(),
            pod: pod.to_string(),
            stream,
            text,
        });
    })
    .await;
}

/// Gives the lines of a stream until it ends, those that are too long cut.
pub async fn each_line(reader: impl AsyncRead + Unpin, mut keep: impl FnMut(String)) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    let mut cut = false;
    loop {
        let chunk = match reader.fill_buf().await {
            Ok(chunk) if !chunk.is_empty() => chunk,
            _ => break,
        };
        let end = chunk.iter().position(|b| *b == b'\n');
        let part = &chunk[..end.unwrap_or(chunk.len())];
        let room = LONGEST - line.len();
        line.extend_from_slice(&part[..part.len().min(room)]);
        cut |= part.len() > room;
        let used = end.map_or(chunk.len(), |at| at + 1);
        reader.consume(used);
        if end.is_some() {
            keep(text(&line, cut));
            line.clear();
            cut = false;
        }
    }
    if !line.is_empty() {
        keep(text(&line, cut));
    }
}

fn text(line: &[u8], cut: bool) -> String {
    let text = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line));
    if cut {
        format!("{text}… (the rest of the line was dropped)")
    } else {
        text.into_owned()
    }
}

#[cfg(test)]
mod tests {
    use imageflow_types::{FunctionName, RevisionName};

    use super::*;

    #[tokio::test]
    async fn long_lines_and_lines_that_are_no_text_do_not_end_the_reading() {
        let mut written = vec![b'x'; 3 * LONGEST];
        written.extend_from_slice(b"\n\xff\xfe\r\n\nlast");
        let mut lines = Vec::new();
        each_line(written.as_slice(), |line| lines.push(line)).await;
        assert_eq!(lines.len(), 4);
        assert!(
            lines[0].starts_with("xxx") && lines[0].len() < LONGEST + 64,
            "{}",
            lines[0].len()
        );
        assert_eq!(lines[1..], ["\u{fffd}\u{fffd}", "", "last"]);
    }

    #[test]
    fn what_is_kept_is_bounded_by_count_and_by_size() {
        let function = FunctionName::new("any").unwrap();
        let revision = RevisionName::of(&function, 1);
        let line = |text: String| LogLine {
            at_ms: 0,
            function: function.clone(),
            revision: revision.clone(),
            pod: "p".into(),
            stream: Stream::Stdout,
            text,
        };
        let mut kept = Kept::default();
        for n in 0..20 {
            kept.push(line(n.to_string()), 10);
        }
        let texts: Vec<&str> = kept.iter().map(|l| l.text.as_str()).collect();
        assert_eq!(texts, ["10", "11", "12", "13", "14", "15", "16", "17", "18", "19"]);
        for _ in 0..300 {
            kept.push(line("x".repeat(LONGEST)), 1000);
        }
        assert_eq!(kept.iter().count(), MOST / LONGEST);
    }
}
