//! Real servers for tests: fetched once into the cache folder, started on free loopback ports, always stopped.
//! With `IMAGEFLOW_SERVERS_HOST` they listen on that address of this machine instead: pods of a cluster reach them there.

pub mod connect;
pub mod kafka;
pub mod policies;
mod process;
pub mod proxy;
pub mod s3;
pub mod tls;

use std::io;
use std::net::TcpListener;

/// Ports for servers that are started again on their own: below those that systems give to clients and to who asks for any
/// port, so that nobody gets one while its server is down.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
/// Looks at so many ports for each that is asked for.
const LOOKS: usize = 50;

/// Ports that are all free at the same moment.
pub(crate) fn free_ports(count: usize) -> io::Result<Vec<u16>> {
    let mut listeners: Vec<TcpListener> = Vec::with_capacity(count);
    let mut last = io::Error::other("no port was asked for");
    for _ in 0..count * LOOKS {
        if listeners.len() == count {
            break;
        }
        let port = rand::random_range(PORTS);
        match TcpListener::bind((host(), port)) {
            Ok(listener) => listeners.push(listener),
            Err(error) => last = error,
        }
    }
    if listeners.len() < count {
        return Err(last);
    }
    listeners.iter().map(|l| Ok(l.local_addr()?.port())).collect()
}

/// Where the servers listen.
pub(crate) fn host() -> String {
    std::env::var("IMAGEFLOW_SERVERS_HOST").unwrap_or_else(|_| "127.0.0.1".to_owned())
}
