//! What pods write, line by line.
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use tokio::io::AsyncRead;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};

use super::{LocalHost, now_ms};
use crate::host::{LogLine, PodSpec, Stream};
use crate::pod::PodId;

/// Longest line that is kept, in bytes; the rest of a longer one is dropped.
const LONGEST: usize = 8 << 10;
/// Lines of standard error that explain an end.
const LAST: usize = 3;

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

/// Reads a stream to its end.
pub async fn follow(
    host: Arc<LocalHost>,
    spec: Arc<PodSpec>,
    pod: PodId,
    stream: Stream,
    reader: impl AsyncRead + Unpin,
    last: LastLines,
) {
    let mut lines = FramedRead::new(reader, LinesCodec::new_with_max_length(LONGEST));
    while let Some(line) = lines.next().await {
        let text = match line {
            Ok(text) => text,
            Err(LinesCodecError::MaxLineLengthExceeded) => "(a line over 8 KiB was dropped)".to_owned(),
            // Not text, or the pipe broke.
            Err(LinesCodecError::Io(_)) => return,
        };
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
    }
}
