//! What can go wrong for somebody at the command line, with the exit code and the text of each.
use std::path::PathBuf;

use imageflow_types::{ErrorCode, FieldErrors, Problem};

/// An error that ends the command.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The platform answered with a problem.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// A document is wrong; found before anything was sent.
    #[error("{origin} is not valid")]
    Manifest {
        /// The file.
        origin: String,
        /// The fields at fault.
        errors: FieldErrors,
    },
    /// Documents of a file are wrong; found before anything was sent.
    #[error("{origin} is not valid")]
    Documents {
        /// The file.
        origin: String,
        /// Each document at fault, as `kind/name`, with its fields.
        faults: Vec<(String, FieldErrors)>,
    },
    /// An argument that the parser cannot judge alone.
    #[error("{0}")]
    Usage(String),
    /// A file that should be read cannot be.
    #[error("cannot read {}", path.display())]
    Input {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file that should be written cannot be.
    #[error("cannot write {}", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Nothing answers at the address of the server.
    #[error("cannot reach the server at {server}")]
    Unreachable {
        /// Its base address.
        server: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server answered with something that is not of this API.
    #[error("the server at {server} answered {what}")]
    Protocol {
        /// Its base address.
        server: String,
        /// What was wrong with the answer.
        what: String,
    },
    /// An answer of the server broke off.
    #[error("the answer of the server at {server} broke off: {what}")]
    Cut {
        /// Its base address.
        server: String,
        /// How.
        what: String,
    },
    /// The server did not answer in time.
    #[error("the server at {server} did not answer within {seconds} s")]
    Timeout {
        /// Its base address.
        server: String,
        /// The time it was given.
        seconds: u64,
    },
    /// The work was done and its outcome is a failure.
    #[error("{0}")]
    Failed(String),
    /// Standard output is closed.
    #[error("cannot write to standard output")]
    Stdout(#[source] std::io::Error),
}

impl From<Problem> for CliError {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}

impl CliError {
    /// The exit code: 1 failed, 64 usage, 66 no input, 69 no server, 77 not allowed.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Problem(p) if matches!(p.status, 401 | 403) => 77,
            // A reader that has seen enough, such as `head`, is no failure.
            Self::Stdout(e) if e.kind() == std::io::ErrorKind::BrokenPipe => 0,
            Self::Usage(_) => 64,
            Self::Input { .. } => 66,
            Self::Unreachable { .. } | Self::Timeout { .. } => 69,
            _ => 1,
        }
    }

    /// The text for people: what on the first line, then the fields and remedies.
    #[must_use]
    pub fn text(&self) -> String {
        let mut lines = vec![];
        match self {
            Self::Problem(p) => {
                lines.push(if p.errors.is_empty() {
                    p.to_string()
                } else {
                    p.title.clone()
                });
                let document = document_of(p).map_or_else(String::new, |d| format!("{d}: "));
                lines.extend(p.errors.iter().map(|e| format!("  {document}{e}")));
                if let Some(seconds) = p.retry_after {
                    lines.push(format!("  try again in {seconds} s"));
                }
                match p.status {
                    401 => lines.push("  give a key with --api-key or IMAGEFLOW_API_KEY".to_owned()),
                    403 => lines.push("  the role of this key does not allow it".to_owned()),
                    _ => {}
                }
            }
            Self::Manifest { errors, .. } => {
                lines.push(self.to_string());
                lines.extend(errors.0.iter().map(|e| format!("  {e}")));
            }
            Self::Documents { faults, .. } => {
                lines.push(self.to_string());
                for (document, errors) in faults {
                    lines.extend(errors.0.iter().map(|e| format!("  {document}: {e}")));
                }
            }
            Self::Unreachable { .. } => {
                lines.push(self.to_string());
                lines.push("  is it running? start it with `imageflow up`, or name another with --server".to_owned());
                lines.extend(causes(self));
            }
            _ => {
                lines.push(self.to_string());
                lines.extend(causes(self));
            }
        }
        lines.join("\n")
    }

    /// The same as a problem document, for programs.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let code = match self {
            Self::Problem(p) => return (**p).clone(),
            Self::Manifest { errors, .. } => {
                let mut problem = Problem::from(errors.clone());
                problem.detail = self.to_string();
                return problem;
            }
            Self::Documents { faults, .. } => {
                let all = faults.iter().flat_map(|(_, errors)| errors.0.clone()).collect();
                let mut problem = Problem::from(FieldErrors(all));
                problem.detail = self.text();
                return problem;
            }
            Self::Usage(_) | Self::Input { .. } => ErrorCode::InvalidArgument,
            Self::Unreachable { .. } | Self::Cut { .. } => ErrorCode::Unavailable,
            Self::Timeout { .. } => ErrorCode::Timeout,
            Self::Failed(_) => ErrorCode::FunctionFailed,
            Self::Output { .. } | Self::Protocol { .. } | Self::Stdout(_) => ErrorCode::Internal,
        };
        Problem::new(code, self.text())
    }
}

/// The document at fault as `kind/name`. The platform writes it before the faults, as `Kind name: `.
fn document_of(problem: &Problem) -> Option<String> {
    let faults = FieldErrors(problem.errors.clone()).to_string();
    let before = problem.detail.strip_suffix(&faults)?.strip_suffix(": ")?;
    let (kind, name) = before.split_once(' ')?;
    Some(format!("{}/{name}", kind.to_lowercase()))
}

fn causes(error: &CliError) -> Vec<String> {
    let mut out: Vec<String> = vec![];
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        let text = format!("  {cause}");
        if out.last() != Some(&text) {
            out.push(text);
        }
        next = cause.source();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use imageflow_types::FieldError;

    #[test]
    fn each_kind_of_error_has_its_exit_code() {
        let io = || std::io::Error::from(std::io::ErrorKind::NotFound);
        assert_eq!(CliError::from(Problem::new(ErrorCode::Forbidden, "no")).exit_code(), 77);
        assert_eq!(
            CliError::from(Problem::new(ErrorCode::Unauthenticated, "no")).exit_code(),
            77
        );
        assert_eq!(CliError::from(Problem::new(ErrorCode::NotFound, "no")).exit_code(), 1);
        assert_eq!(CliError::Usage(String::new()).exit_code(), 64);
        assert_eq!(
            CliError::Input {
                path: "x".into(),
                source: io()
            }
            .exit_code(),
            66
        );
        assert_eq!(
            CliError::Unreachable {
                server: "s".into(),
                source: Box::new(io())
            }
            .exit_code(),
            69
        );
        assert_eq!(CliError::Stdout(std::io::ErrorKind::BrokenPipe.into()).exit_code(), 0);
    }

    #[test]
    fn fields_with_their_remedies_follow_the_first_line() {
        let fields = FieldErrors(vec![
            FieldError::new("spec.scale.max", "is 0").remedy("write at least 1"),
        ]);
        let text = CliError::from(Problem::from(fields)).text();
        assert_eq!(text, "invalid argument\n  spec.scale.max: is 0; write at least 1");
    }

    #[test]
    fn faults_are_told_with_the_document_they_are_in() {
        let fields = FieldErrors(vec![
            FieldError::new("spec.a", "is 0"),
            FieldError::new("spec.b", "is 1"),
        ]);
        let mut problem = Problem::from(fields.clone());
        problem.detail = format!("Flow thumbs: {}", problem.detail);
        let text = CliError::from(problem).text();
        assert_eq!(
            text,
            "invalid argument\n  flow/thumbs: spec.a: is 0\n  flow/thumbs: spec.b: is 1"
        );
        let local = CliError::Documents {
            origin: "f.yaml".to_owned(),
            faults: vec![("flow/thumbs".to_owned(), fields)],
        };
        let text = local.text();
        assert_eq!(
            text,
            "f.yaml is not valid\n  flow/thumbs: spec.a: is 0\n  flow/thumbs: spec.b: is 1"
        );
        let problem = local.problem();
        assert_eq!((problem.errors.len(), problem.detail), (2, text));
    }

    #[test]
    fn an_unreachable_server_says_how_to_start_one() {
        let source = Box::new(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
        let text = CliError::Unreachable {
            server: "http://127.0.0.1:1".into(),
            source,
        }
        .text();
        assert!(
            text.starts_with("cannot reach the server at http://127.0.0.1:1\n"),
            "{text}"
        );
        assert!(
            text.contains("imageflow up") && text.contains("connection refused"),
            "{text}"
        );
    }
}
