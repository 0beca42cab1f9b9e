//! What a world is asked to do: functions, requests with their service times, nodes, and what goes wrong. Drawn once from a seed,
//! so that every policy meets the very same load.
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

mod catalogue;

pub use catalogue::{all, ramp};

/// Milliseconds since the begin of the world.
pub type Ms = u64;

/// One piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// When it comes; [`LATER`] for the step of a flow, which comes with the end of the step before it.
    pub at: Ms,
    /// Which function it is for: an index.
    pub function: u32,
    /// How long a pod works on it.
    pub service: Ms,
    /// Partition of the work topic; a stuck one is not delivered.
    pub partition: u16,
    /// How often it fails before it succeeds; `u32::MAX` for always.
    pub fails: u32,
    /// The request that works on its result, by its number.
    pub next: Option<u32>,
}

/// No time: what comes after something else.
pub const LATER: Ms = Ms::MAX;

/// Who waits for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A caller: each second of waiting counts.
    Interactive,
    /// Nobody: a record may wait as long as the drain target.
    Batch,
}

/// A function of the world.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Function {
    /// Who waits.
    pub kind: Kind,
    /// Requests that a pod works on at a time.
    pub concurrency: u32,
    /// GPU cards of a pod.
    pub cards: u32,
    /// Bounds of pods.
    pub bounds: (u32, u32),
    /// Median and spread (sigma of a lognormal) of a cold start, ms.
    pub cold: (f64, f64),
    /// Longest wait that is no miss; the drain target of a batch function.
    pub patience: Ms,
}

impl Default for Function {
    fn default() -> Self {
        Self {
            kind: Kind::Interactive,
            concurrency: 2,
            cards: 0,
            bounds: (0, 100),
            cold: (600.0, 0.2),
            patience: 1_000,
        }
    }
}

/// A load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// Its name.
    pub name: String,
    /// What it is like, in one line.
    pub about: String,
    /// How long the world goes on.
    pub duration: Ms,
    /// The functions.
    pub functions: Vec<Function>,
    /// The requests, by time.
    pub requests: Vec<Request>,
    /// GPU cards of all nodes.
    pub gpus: u32,
    /// Pods that the nodes carry.
    pub room: u32,
    /// Partitions of each work topic.
    pub partitions: u16,
    /// When nothing is known of backlogs: from, to.
    pub blind: Vec<(Ms, Ms)>,
    /// When partition 0 of each topic is not delivered: from, to.
    pub stuck: Option<(Ms, Ms)>,
}

impl Workload {
    /// An empty one.
    #[must_use]
    pub fn new(name: &str, about: &str, duration: Ms, functions: Vec<Function>) -> Self {
        Self {
            name: name.to_owned(),
            about: about.to_owned(),
            duration,
            functions,
            requests: Vec::new(),
            gpus: 0,
            room: 1_000,
            partitions: 8,
            blind: Vec::new(),
            stuck: None,
        }
    }

    /// The same with these requests.
    #[must_use]
    pub fn with(mut self, requests: Vec<Request>) -> Self {
        self.requests = requests;
        self.sorted()
    }

    /// The same where each result is worked on by another function, for as long as `service` says of the first.
    fn followed(mut self, function: u32, mut service: impl FnMut(&Request) -> Ms) -> Self {
        for first in 0..self.requests.len() {
            let one = self.requests[first];
            self.requests[first].next = u32::try_from(self.requests.len()).ok();
            self.requests.push(Request {
                at: LATER,
                function,
                service: service(&one),
                next: None,
                ..one
            });
        }
        self
    }

    fn sorted(mut self) -> Self {
        self.requests.sort_by_key(|r| (r.at, r.function));
        for (i, request) in self.requests.iter_mut().enumerate() {
            request.partition = u16::try_from(i % usize::from(self.partitions.max(1))).unwrap_or(0);
        }
        self
    }
}

/// The source of all chance of a workload, apart from that of others.
fn chance(seed: u64, name: &str) -> ChaCha8Rng {
    let salt = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    ChaCha8Rng::seed_from_u64(seed ^ salt)
}
