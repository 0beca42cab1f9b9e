//! `kafka-image ARCHIVE`: a container image with Apache Kafka where the published one has it, made of the jars of the tests and of
//! this machine's Java, so that `manifests/kafka` runs on the cluster of the tests as it is.
use std::collections::BTreeMap;
use std::error::Error;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use imageflow_images::{Image, libraries};
use imageflow_servers::kafka::Cluster;

/// As `manifests/kafka` names it.
const NAME: &str = "apache/kafka:4.3.1";
/// What the manifests' scripts call, and the classes behind.
const SCRIPTS: [(&str, &str); 4] = [
    ("kafka-storage.sh", "kafka.tools.StorageTool"),
    ("kafka-server-start.sh", "kafka.Kafka"),
    ("kafka-configs.sh", "kafka.admin.ConfigCommand"),
    ("kafka-acls.sh", "org.apache.kafka.tools.AclCommand"),
];
/// What brokers and tools use of Java.
const MODULES: &str = "java.se,jdk.unsupported,jdk.security.jgss,jdk.management,jdk.crypto.ec";

fn main() -> ExitCode {
    let Some(archive) = std::env::args_os().nth(1) else {
        eprintln!("kafka-image: say where the archive goes");
        return ExitCode::from(64);
    };
    match write(Path::new(&archive)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kafka-image: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(archive: &Path) -> Result<(), Box<dyn Error>> {
    let made = tempfile::tempdir()?;
    let java = made.path().join("java");
    let linked = Command::new("jlink")
        .args([
            "--add-modules",
            MODULES,
            "--strip-java-debug-attributes",
            "--no-header-files",
            "--no-man-pages",
        ])
        .arg("--output")
        .arg(&java)
        .output()
        .map_err(|e| format!("jlink (package openjdk-17-jdk-headless): {e}"))?;
    if !linked.status.success() {
        return Err(format!("jlink: {}", String::from_utf8_lossy(&linked.stdout)).into());
    }
    let mut files = BTreeMap::new();
    add(&mut files, "opt/java", &java)?;
    add(&mut files, "opt/kafka/libs", &Cluster::fetch_libs()?)?;
    for (name, class) in SCRIPTS {
        // Without the second compiler: what runs here does not run for long.
        let script = format!(
            "#!/bin/sh\nexec /opt/java/bin/java ${{KAFKA_HEAP_OPTS:-}} ${{KAFKA_LOG4J_OPTS:-}} -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \\\n  \
             -cp '/opt/kafka/libs/*' {class} \"$@\"\n"
        );
        let path = made.path().join(name);
        std::fs::write(&path, script)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        files.insert(format!("opt/kafka/bin/{name}"), path);
    }
    let programs: Vec<PathBuf> = ["sh", "cat", "rm"]
        .iter()
        .map(|name| Path::new("/bin").join(name))
        .collect();
    // What these load, Java's other libraries load too; its own lie beside them.
    let of_java = ["bin/java", "lib/server/libjvm.so"].map(|name| java.join(name));
    for object in programs.iter().chain(&of_java) {
        for library in libraries(object)? {
            if !library.starts_with(made.path()) {
                let place = library.to_string_lossy().trim_start_matches('/').to_owned();
                files.insert(place, library);
            }
        }
    }
    for program in &programs {
        let place = program.to_string_lossy().trim_start_matches('/').to_owned();
        // Our images have but the root in their PATH.
        files.insert(place.trim_start_matches("bin/").to_owned(), program.clone());
        files.insert(place, program.clone());
    }
    let mut image = Image::of(NAME, "/bin/sh");
    image.files = files;
    image.write(archive)?;
    Ok(())
}

/// All files of a folder, under their names.
fn add(files: &mut BTreeMap<String, PathBuf>, place: &str, folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let place = format!("{place}/{}", path.file_name().unwrap_or_default().to_string_lossy());
        if path.is_dir() {
            add(files, &place, &path)?;
        } else {
            files.insert(place, path);
        }
    }
    Ok(())
}
