//! The jars of Kafka and a formatted data folder, in the cache folder.
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{CLUSTER_ID, JAVA, KafkaServerError, NODE, PASSWORD, Result, USER, folder, missing};

/// The version of Kafka.
pub const VERSION: &str = "4.3.1";
const POM: &str = include_str!("../../kafka/pom.xml");
/// What was formatted, with [`USER`] in it.
pub const FORMATTED: &str = "formatted-1";

/// Where downloads are kept.
pub fn cache_dir() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("IMAGEFLOW_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("imageflow")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/imageflow")))
        .ok_or(KafkaServerError::NoCache)
}

/// The folder with `libs` (the jars) and [`FORMATTED`] (what a formatted data folder holds besides its name). One process
/// makes it, the others wait for its lock.
pub fn install(cache: &Path) -> Result<PathBuf> {
    let home = cache.join(format!("kafka-{VERSION}"));
    let is_there = || home.join("libs").exists() && home.join(FORMATTED).exists();
    if is_there() {
        return Ok(home);
    }
    let fail = || folder("the cache folder", &home);
    std::fs::create_dir_all(&home).map_err(fail())?;
    let lock = File::create(home.join("lock")).map_err(fail())?;
    lock.lock().map_err(fail())?;
    if is_there() {
        return Ok(home);
    }
    // Beside their place and then renamed: what is cut off leaves nothing that looks complete.
    let staging = tempfile::tempdir_in(&home).map_err(fail())?;
    if !home.join("libs").exists() {
        // To stderr past the capture of the test harness: it takes its time, and somebody may wait.
        let _told = writeln!(io::stderr(), "fetching Kafka {VERSION} (54 MB), once");
        fetch(staging.path())?;
        std::fs::rename(staging.path().join("libs"), home.join("libs")).map_err(fail())?;
    }
    format(&home.join("libs"), staging.path())?;
    std::fs::rename(staging.path().join(FORMATTED), home.join(FORMATTED)).map_err(fail())?;
    Ok(home)
}

fn fetch(into: &Path) -> Result<()> {
    std::fs::write(into.join("pom.xml"), POM).map_err(folder("the cache folder", into))?;
    let fetched = Command::new("mvn")
        .args(["-q", "-B", "dependency:copy-dependencies"])
        .args(["-DoutputDirectory=libs", "-DincludeScope=runtime"])
        .current_dir(into)
        .stdin(Stdio::null())
        .output()
        .map_err(missing("mvn", "maven"))?;
    if !fetched.status.success() {
        let said = [fetched.stdout, fetched.stderr].concat();
        return Err(KafkaServerError::Fetch(
            String::from_utf8_lossy(&said).trim().to_owned(),
        ));
    }
    Ok(())
}

fn format(libs: &Path, into: &Path) -> Result<()> {
    let fail = || folder("the cache folder", into);
    let mut properties = NODE.to_owned();
    for (name, value) in [
        ("@ID@", "1"),
        ("@HOST@", "127.0.0.1"),
        ("@VOTERS@", "1@127.0.0.1:2"),
        ("@CLIENTS@", "1"),
        ("@CONTROLLER@", "2"),
        ("@DATA@", FORMATTED),
        ("@REPLICAS@", "1"),
        ("@IN_SYNC@", "1"),
    ] {
        properties = properties.replace(name, value);
    }
    std::fs::write(into.join("format.properties"), properties).map_err(fail())?;
    let formatted = Command::new("java")
        .args(["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"])
        .arg(libs.join("*"))
        .args([
            "kafka.tools.StorageTool",
            "format",
            "-t",
            CLUSTER_ID,
            "-c",
            "format.properties",
        ])
        .arg("--add-scram")
        .arg(format!("SCRAM-SHA-512=[name={USER},password={PASSWORD}]"))
        .current_dir(into)
        .stdin(Stdio::null())
        .output()
        .map_err(missing("java", JAVA))?;
    if !formatted.status.success() {
        let said = [formatted.stdout, formatted.stderr].concat();
        return Err(KafkaServerError::Start(
            String::from_utf8_lossy(&said).trim().to_owned(),
        ));
    }
    // Each node gets one with its own name.
    std::fs::remove_file(into.join(FORMATTED).join("meta.properties")).map_err(fail())
}
