//! Arguments of the commands about work: runs, calls, images, events, logs.
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use imageflow_types::{ErrorCode, HumanDuration};

use super::{Format, OutputArgs, key_value};

/// `imageflow runs`
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  imageflow runs --flow thumbnails --status failed\n  imageflow runs describe run-0123abcd"
)]
pub struct RunsArgs {
    /// What to do; list without.
    #[command(subcommand)]
    pub command: Option<RunsCommand>,
    /// Which runs to list.
    #[command(flatten)]
    pub filter: RunsFilter,
    /// How results are printed.
    #[command(flatten)]
    pub out: OutputArgs,
}

/// What to do with runs.
#[derive(Debug, Subcommand)]
pub enum RunsCommand {
    /// Runs, newest first
    #[command(alias = "ls")]
    List(RunsFilter),
    /// One run with its steps
    #[command(alias = "get")]
    Describe {
        /// Its id
        id: String,
        /// Go on until it has ended
        #[arg(short, long)]
        watch: bool,
    },
    /// Start no further step of a run
    Cancel {
        /// Its id
        id: String,
    },
}

/// Which runs to list.
#[derive(Debug, Clone, Default, Args)]
pub struct RunsFilter {
    /// Of this flow only
    #[arg(long)]
    pub flow: Option<String>,
    /// In this state only
    #[arg(long, value_parser = ["running", "succeeded", "failed", "cancelled"])]
    pub status: Option<String>,
    /// At most this many, the newest; 50 without, and 10,000 with --watch
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: Option<u32>,
    /// Go on with a line for every change
    #[arg(short, long)]
    pub watch: bool,
}

/// `imageflow run`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  imageflow run thumbnails photos/*.jpg --out small\n  imageflow run function/thumb cat.png --no-wait\n\nThe same file in the same flow is the same run: a repeat costs nothing. --again makes a new one."
)]
pub struct RunArgs {
    /// The flow, or function/NAME
    pub flow: String,
    /// Images
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// Start the runs, do not wait for them
    #[arg(long, conflicts_with = "out")]
    pub no_wait: bool,
    /// Write the results into this folder, as FILE-STEP.EXT
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// With --out: overwrite files that are there with other content
    #[arg(long, requires = "out")]
    pub force: bool,
    /// Each step as a request of its own
    #[arg(long)]
    pub no_fuse: bool,
    /// Make a new run even if there was one for the same file
    #[arg(long)]
    pub again: bool,
    /// Longest time to wait for one run
    #[arg(long, default_value = "10m")]
    pub timeout: HumanDuration,
    /// Runs under way at the same time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub parallel: u32,
    /// How results are printed.
    #[command(flatten)]
    pub format: OutputArgs,
}

/// `imageflow invoke`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  imageflow invoke thumb cat.jpg -o small.jpg --param width=200\n  curl -s URL | imageflow invoke thumb - > small.jpg"
)]
pub struct InvokeArgs {
    /// The function
    pub function: String,
    /// The image, or - for standard input
    pub file: PathBuf,
    /// Where the result goes; - is standard output
    #[arg(short, long, default_value = "-", value_name = "FILE")]
    pub output: PathBuf,
    /// Parameter of the operation
    #[arg(long = "param", value_name = "K=V", value_parser = key_value)]
    pub params: Vec<(String, String)>,
    /// Call the revision with this tag
    #[arg(long)]
    pub tag: Option<String>,
    /// Longest time to wait for the answer
    #[arg(long, default_value = "5m")]
    pub timeout: HumanDuration,
}

/// `imageflow images`
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  imageflow images list processed-images\n  imageflow images put cat.jpg\n  imageflow images get processed-images/thumbs/cat.jpg -o cat.jpg"
)]
pub struct ImagesArgs {
    /// What to do; list without.
    #[command(subcommand)]
    pub command: Option<ImagesCommand>,
    /// Which ones to list.
    #[command(flatten)]
    pub listing: ImagesListing,
}

impl ImagesArgs {
    pub(super) fn format(&self) -> Format {
        match &self.command {
            None => self.listing.output,
            Some(ImagesCommand::List { listing, .. }) => listing.output,
            Some(ImagesCommand::Put { out, .. }) => out.output,
            Some(ImagesCommand::Get { .. }) => Format::Table,
        }
    }
}

/// Which objects of a bucket to list, and how.
#[derive(Debug, Clone, Args)]
pub struct ImagesListing {
    /// Only keys that begin so
    #[arg(long)]
    pub prefix: Option<String>,
    /// At most this many
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// How results are printed: table, wide, json, yaml or name
    // Not the flag of the other commands, which those below take too: -o of `get` is a file.
    #[arg(
        short,
        long,
        value_enum,
        hide_possible_values = true,
        default_value_t,
        value_name = "FORMAT"
    )]
    pub output: Format,
}

/// What to do with images.
#[derive(Debug, Subcommand)]
pub enum ImagesCommand {
    /// Objects of a bucket
    #[command(alias = "ls")]
    List {
        /// The bucket
        #[arg(default_value = "raw-images")]
        bucket: String,
        /// Which ones
        #[command(flatten)]
        listing: ImagesListing,
    },
    /// Upload images; triggers see them
    Put {
        /// Images
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Put before each file's name to make its key
        #[arg(long, default_value = "")]
        prefix: String,
        /// How results are printed.
        #[command(flatten)]
        out: OutputArgs,
    },
    /// Download an image
    Get {
        /// Bucket and key
        #[arg(value_name = "BUCKET/KEY")]
        object: String,
        /// Where it goes; - is standard output
        #[arg(short, long, default_value = "-", value_name = "FILE")]
        output: PathBuf,
    },
}

/// `imageflow objects`
#[derive(Debug, Args)]
pub struct ObjectsArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ObjectsCommand,
    /// How results are printed.
    #[command(flatten)]
    pub out: OutputArgs,
}

/// What to do with objects.
#[derive(Debug, Subcommand)]
pub enum ObjectsCommand {
    /// Find objects whose event is missing, and raise it now
    #[command(
        after_help = "Examples:\n  imageflow objects reconcile raw-images\n  imageflow objects reconcile raw-images --all -o json\n\nThe platform does this by itself each minute (every ten minutes with the embedded store), or more seldom where a look takes long: at most a tenth of the time goes into it. Each look lists the whole bucket (S3 cannot list by time), but asks only for what is newer than the one before. An object has one run a trigger, whatever is raised twice.\n\n--all costs, beside that listing, a request, an event and a run for each object that a trigger wants and of which no run is known: those from before the trigger, those whose notification was lost long ago, and those whose run ended so long ago that it was forgotten (results that are still there are found, not made again)."
    )]
    Reconcile {
        /// A bucket from which a trigger may read
        bucket: String,
        /// Look at every object, not only at those since the last look
        #[arg(long)]
        all: bool,
        /// Longest time to wait for the answer
        #[arg(long, default_value = "10m")]
        timeout: HumanDuration,
    },
}

/// `imageflow events`
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: EventsCommand,
}

/// What to do with events.
#[derive(Debug, Subcommand)]
pub enum EventsCommand {
    /// Send a CloudEvent
    #[command(
        after_help = "Examples:\n  imageflow events send --type com.example.ping --data '{\"a\":1}'\n  imageflow events send --file event.json"
    )]
    Send(Box<SendArgs>),
}

/// `imageflow events send`
#[derive(Debug, Args)]
pub struct SendArgs {
    /// Type of the event
    #[arg(long = "type", value_name = "TYPE", required_unless_present = "file")]
    pub kind: Option<String>,
    /// Where it comes from
    #[arg(long, default_value = "/imageflow/cli")]
    pub source: String,
    /// What it is about
    #[arg(long)]
    pub subject: Option<String>,
    /// Its id; a random one without
    #[arg(long)]
    pub id: Option<String>,
    /// Its data: JSON, or @FILE with JSON
    #[arg(long, value_name = "JSON|@FILE")]
    pub data: Option<String>,
    /// A file with the whole event, or an array of events
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kind", "source", "subject", "id", "data"])]
    pub file: Option<PathBuf>,
}

/// `imageflow dead-letters`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  imageflow dead-letters\n  imageflow dead-letters list --code timeout --since 2h\n  imageflow dead-letters replay --function thumb --code timeout --since 2026-11-29T20:00:00Z"
)]
pub struct DeadLettersArgs {
    /// What to do; list without.
    #[command(subcommand)]
    pub command: Option<DeadLettersCommand>,
    /// How results are printed.
    #[command(flatten)]
    pub out: OutputArgs,
}

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// Those that were not replayed, newest first
    #[command(alias = "ls")]
    List {
        /// Which ones
        #[command(flatten)]
        filter: LettersFilter,
        /// At most this many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// One with its attempts
    #[command(alias = "describe")]
    Show {
        /// Its id
        id: String,
    },
    /// Try again
    Replay {
        /// Its id
        #[arg(
            required_unless_present_any = ["all", "function", "code", "since", "until"],
            conflicts_with_all = ["all", "function", "code", "since", "until"]
        )]
        id: Option<String>,
        /// All of them; of those that a filter names it needs no mention
        #[arg(long)]
        all: bool,
        /// Which ones
        #[command(flatten)]
        filter: LettersFilter,
    },
}

/// Which dead letters are meant.
#[derive(Debug, Clone, Default, Args)]
pub struct LettersFilter {
    /// Of this function only
    #[arg(long)]
    pub function: Option<String>,
    /// With this error only, such as timeout
    #[arg(long, hide_possible_values = true, value_parser = error_codes())]
    pub code: Option<String>,
    /// From then on: 2026-11-29T20:00:00Z, or 2h for two hours ago
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Before then: a time, or how long ago it is
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
}

impl LettersFilter {
    /// As pairs of a query.
    pub fn query(&self) -> [(&'static str, Option<&str>); 4] {
        [
            ("function", self.function.as_deref()),
            ("code", self.code.as_deref()),
            ("since", self.since.as_deref()),
            ("until", self.until.as_deref()),
        ]
    }
}

fn error_codes() -> PossibleValuesParser {
    ErrorCode::ALL.iter().map(|code| code.slug()).into()
}

/// `imageflow logs`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  imageflow logs thumb --tail 20 -f")]
pub struct LogsArgs {
    /// The function
    pub function: String,
    /// Go on with new lines
    #[arg(short, long)]
    pub follow: bool,
    /// This many of the last lines
    #[arg(long, default_value_t = 100)]
    pub tail: usize,
    /// Of this revision only
    #[arg(long)]
    pub revision: Option<String>,
    /// How results are printed.
    #[command(flatten)]
    pub out: OutputArgs,
}
