//! How runs are told while they go: bars on a terminal, else a line for every change.
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use imageflow_types::{RunState, RunStatus};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::Format;
use crate::error::CliError;
use crate::output::Context;
use crate::render;

/// Where progress goes.
pub enum Progress<'a> {
    /// Bars that move.
    Bars(MultiProgress),
    /// Lines, each written whole.
    Lines(Mutex<&'a mut (dyn Write + Send)>),
    /// Nobody wants to see it.
    Silent,
}

impl<'a> Progress<'a> {
    /// What suits the context.
    pub fn of(cx: &'a mut Context) -> Self {
        if cx.quiet || matches!(cx.format, Format::Json | Format::Yaml) {
            Self::Silent
        } else if cx.live {
            Self::Bars(MultiProgress::with_draw_target(ProgressDrawTarget::stderr()))
        } else {
            Self::Lines(Mutex::new(&mut cx.err))
        }
    }

    /// Takes the bars away, once all has ended: what they said is in the report.
    pub fn clear(&self) {
        if let Self::Bars(bars) = self {
            // A terminal that cannot be drawn to has no bars.
            let _ = bars.clear();
        }
    }

    /// The progress of one file.
    pub fn file(&self, name: String) -> FileProgress<'_, 'a> {
        let bar = match self {
            Self::Bars(bars) => {
                let bar = bars.add(ProgressBar::new(1));
                if let Ok(style) = ProgressStyle::with_template("{prefix:24!} {bar:16} {pos}/{len} {wide_msg}") {
                    bar.set_style(style);
                }
                bar.set_prefix(name.clone());
                bar.set_message("uploading");
                Some(bar)
            }
            Self::Lines(_) | Self::Silent => None,
        };
        FileProgress {
            progress: self,
            bar,
            name,
            last: String::new(),
        }
    }
}

/// The progress of one file.
pub struct FileProgress<'p, 'a> {
    progress: &'p Progress<'a>,
    bar: Option<ProgressBar>,
    name: String,
    last: String,
}

impl FileProgress<'_, '_> {
    /// Tells how its run stands.
    pub fn state(&mut self, state: &RunState) {
        if let Some(bar) = &self.bar {
            let (over, all) = render::ended(state);
            bar.set_length(all);
            bar.set_position(over);
            bar.set_message(render::progress(state));
        }
        // Why it failed comes with its end.
        if state.status != RunStatus::Failed {
            self.line(format!("{}  {}", state.status.as_str(), render::progress(state)));
        }
    }

    /// Tells that its run waits to begin.
    pub fn waiting(&mut self) {
        if let Some(bar) = &self.bar {
            bar.set_message("waiting to begin");
        }
        self.line("waiting to begin".to_owned());
    }

    /// Tells how it ended, in one word and with the error if there was one.
    pub fn end(mut self, status: &str, error: Option<&CliError>) {
        let text = error.map(|e| e.text().lines().next().unwrap_or_default().to_owned());
        match (&self.bar, text) {
            (Some(bar), Some(text)) => bar.abandon_with_message(text),
            (Some(bar), None) => bar.abandon(),
            (None, Some(text)) => self.line(format!("{status}  {text}")),
            (None, None) => {}
        }
    }

    fn line(&mut self, text: String) {
        if let Progress::Lines(out) = self.progress
            && text != self.last
        {
            // Nobody can be told that standard error is closed.
            let _ = writeln!(
                out.lock().unwrap_or_else(PoisonError::into_inner),
                "{}: {text}",
                self.name
            );
            self.last = text;
        }
    }
}
