//! `functions` and `deploy`.
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Method;
use imageflow_images::Image;
use imageflow_types::Resource;
use imageflow_types::function::KeyRef;
use imageflow_types::manifest::API_VERSION;
use serde_json::{Map, Value, json};

use super::apply::{delete_one, send};
use crate::args::Format;
use crate::args::manage::{DeployArgs, FunctionsArgs, FunctionsCommand};
use crate::client::{Call, encode};
use crate::error::CliError;
use crate::output::{Context, at};
use crate::render;

/// How long `deploy --wait` waits.
const WAIT: Duration = Duration::from_secs(120);

/// The function that the arguments of `deploy` describe, given in the folder `here`.
///
/// # Errors
/// What is wrong with it, by field.
pub fn function_of(args: &DeployArgs, here: &Path) -> Result<Resource, CliError> {
    let mut spec = Map::new();
    if let Some(operation) = &args.operation {
        spec.insert("operation".to_owned(), json!(operation));
    }
    if let Some(image) = &args.image {
        spec.insert("image".to_owned(), json!(image));
    }
    if !args.pull_secrets.is_empty() {
        let secrets: Vec<_> = args.pull_secrets.iter().map(|name| json!({"name": name})).collect();
        spec.insert("imagePullSecrets".to_owned(), secrets.into());
    }
    let argv = argv_of(args)?;
    if !argv.is_empty() && args.pack.is_none() {
        spec.insert("command".to_owned(), json!(absolute(argv, here)));
    }
    if !args.params.is_empty() {
        let params: Map<_, _> = args.params.iter().map(|(k, v)| (k.clone(), value_of(v))).collect();
        spec.insert("params".to_owned(), params.into());
    }
    let group = |pairs: [(&str, Option<Value>); 2]| {
        let some: Map<_, _> = pairs
            .into_iter()
            .filter_map(|(k, v)| Some((k.to_owned(), v?)))
            .collect();
        (!some.is_empty()).then(|| Value::Object(some))
    };
    let groups = [
        (
            "resources",
            group([
                ("cpu", args.cpu.as_ref().map(|v| json!(v))),
                ("memory", args.memory.as_ref().map(|v| json!(v))),
            ]),
        ),
        (
            "scale",
            group([("min", args.min.map(Into::into)), ("max", args.max.map(Into::into))]),
        ),
        // The aim cannot be above what a pod takes, so both follow the one number.
        (
            "concurrency",
            group([
                ("target", args.concurrency.map(Into::into)),
                ("limit", args.concurrency.map(Into::into)),
            ]),
        ),
        ("timeout", args.timeout.map(|t| json!(t))),
    ];
    spec.extend(groups.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?))));
    let plain = args.env.iter().map(|(k, v)| json!({"name": k, "value": v}));
    let kept = |kind: &str, all: &[(String, KeyRef)]| {
        let one = |(k, from): &(String, KeyRef)| json!({"name": k, "valueFrom": {kind: from}});
        all.iter().map(one).collect::<Vec<_>>()
    };
    let (secrets, configs) = (
        kept("secretKeyRef", &args.env_secrets),
        kept("configMapKeyRef", &args.env_configs),
    );
    let env: Vec<_> = plain.chain(secrets).chain(configs).collect();
    if !env.is_empty() {
        spec.insert("env".to_owned(), env.into());
    }
    let document =
        json!({"apiVersion": API_VERSION, "kind": "Function", "metadata": {"name": args.name}, "spec": spec});
    Resource::from_value(document).map_err(|errors| CliError::Manifest {
        origin: format!("function \"{}\"", args.name),
        errors,
    })
}

fn argv_of(args: &DeployArgs) -> Result<Vec<String>, CliError> {
    match &args.command {
        Some(line) => words(line),
        None => Ok(args.argv.clone()),
    }
}

/// Makes an image of the program, as `--pack` says.
fn pack(cx: &mut Context, args: &DeployArgs, here: &Path) -> Result<(), CliError> {
    let (Some(archive), Some(name)) = (&args.pack, &args.image) else {
        return Ok(());
    };
    let argv = argv_of(args)?;
    let Some((program, arguments)) = argv.split_first() else {
        return Err(CliError::Usage("--pack: name the program by --command".to_owned()));
    };
    let mut image = Image::of(name, here.join(program));
    image.arguments = arguments.to_vec();
    image
        .write(archive)
        .map_err(|e| CliError::Failed(format!("the image was not made: {e}")))?;
    cx.note(format!("packed {program} into {}, as {name}", archive.display()));
    Ok(())
}

/// A command with its relative paths as the folder `here` has them: the platform works in another. Paths are the program, if it
/// has a `/`, and other words that begin with `./` or `../`.
fn absolute(argv: Vec<String>, here: &Path) -> Vec<String> {
    let path = |(i, word): (usize, String)| {
        let relative = word.starts_with("./") || word.starts_with("../") || (i == 0 && word.contains('/'));
        if !relative {
            return word;
        }
        let tail = word.strip_prefix("./").unwrap_or(&word);
        here.join(tail).to_string_lossy().into_owned()
    };
    argv.into_iter().enumerate().map(path).collect()
}

/// A manifest's command with its relative paths as the manifest's folder has them.
#[must_use]
pub fn anchored(resource: Resource, manifest: &Path) -> Resource {
    let folder = manifest.parent().unwrap_or(Path::new(""));
    let Ok(folder) = std::path::absolute(if manifest.as_os_str() == "-" || folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    }) else {
        return resource;
    };
    match resource {
        Resource::Function(mut function) => {
            function.spec.command = function.spec.command.map(|argv| absolute(argv, &folder));
            Resource::Function(function)
        }
        other => other,
    }
}

/// Says what is likely to go wrong with a command on its way to the platform.
fn check_command(cx: &mut Context, resource: &Resource, here: &Path) -> Result<(), CliError> {
    let Resource::Function(function) = resource else {
        return Ok(());
    };
    let argv = function.spec.command.as_deref().unwrap_or_default();
    let Some((program, words)) = argv.split_first() else {
        return Ok(());
    };
    // Only what is below this folder can be judged here: the platform may be on another machine.
    let program = Path::new(program);
    if program.starts_with(here) {
        std::fs::metadata(program).map_err(|source| CliError::Input {
            path: program.to_owned(),
            source,
        })?;
    }
    for word in words {
        if !word.starts_with('-') && Path::new(word).is_relative() && here.join(word).is_file() {
            cx.note(format!(
                "\"{word}\" is passed as it is; for the file in this folder write ./{word}"
            ));
        }
    }
    Ok(())
}

/// A value of `--param`: JSON where it reads as such, text where not.
#[must_use]
pub fn value_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

/// The words of a command line; quotes keep words together, nothing is expanded.
fn words(line: &str) -> Result<Vec<String>, CliError> {
    let (mut out, mut word, mut quote) = (vec![], None::<String>, None::<char>);
    for c in line.chars() {
        match quote {
            Some(q) if c == q => quote = None,
            Some(_) => word.get_or_insert_default().push(c),
            None if c == '"' || c == '\'' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => out.extend(word.take()),
            None => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(CliError::Usage(format!(
            "--command has a quote that is not closed: {line}"
        )));
    }
    out.extend(word);
    Ok(out)
}

/// How many pods of a revision take requests; of every revision when it has no name (`-`). Those of the revision before go on
/// until the new one's are there, so all together say nothing about it.
fn ready_of(function: &Value, revision: &str) -> u64 {
    let pods = function.pointer("/status/podList").and_then(Value::as_array);
    let ready = |pod: &&Value| at(pod, "/state") == "ready" && [at(pod, "/revision").as_str(), "-"].contains(&revision);
    pods.map_or(0, |all| all.iter().filter(ready).count() as u64)
}

/// `imageflow deploy`
///
/// # Errors
/// What is wrong with the function, or what the platform says.
pub async fn deploy(cx: &mut Context, args: DeployArgs) -> Result<(), CliError> {
    let here = std::env::current_dir().map_err(|source| CliError::Input {
        path: PathBuf::from("."),
        source,
    })?;
    pack(cx, &args, &here)?;
    let resource = function_of(&args, &here)?;
    check_command(cx, &resource, &here)?;
    let answer = send(cx, std::slice::from_ref(&resource), false).await?;
    if !args.wait {
        return Ok(());
    }
    let revision = at(&answer, "/items/0/revision");
    let min = u64::from(args.min.unwrap_or(0));
    let mut problem = None;
    let waited = tokio::time::timeout(WAIT, async {
        let mut every = tokio::time::interval(Duration::from_millis(250));
        loop {
            every.tick().await;
            let now: Value = cx
                .client
                .get_json(format!("/v1/functions/{}", encode(&args.name)))
                .await?;
            let ready = ready_of(&now, &revision);
            if (revision == "-" || at(&now, "/status/latestRevision") == revision) && ready >= min {
                return Ok::<u64, CliError>(ready);
            }
            let now = now
                .pointer("/status/problem")
                .and_then(Value::as_str)
                .map(str::to_owned);
            if now.is_some() && now != problem {
                problem = now;
                cx.note(format!("not ready yet: {}", problem.as_deref().unwrap_or_default()));
            }
        }
    });
    match waited.await {
        Ok(ready) => {
            let name = &args.name;
            match ready? {
                0 => cx.note(format!("{name} is there, its first pod starts with the first request")),
                1 => cx.note(format!("{name} is there, 1 pod ready")),
                n => cx.note(format!("{name} is there, {n} pods ready")),
            }
            Ok(())
        }
        Err(_) => {
            let (name, seconds) = (&args.name, WAIT.as_secs());
            let why = problem.map_or_else(String::new, |p| format!(": {p}"));
            Err(CliError::Failed(format!(
                "{name} is not ready after {seconds} s{why}; see `imageflow logs {name}`"
            )))
        }
    }
}

/// `imageflow functions`
///
/// # Errors
/// What the platform says.
pub async fn functions(cx: &mut Context, args: FunctionsArgs) -> Result<(), CliError> {
    match args.command.unwrap_or(FunctionsCommand::List) {
        FunctionsCommand::List => {
            let items = cx.client.items("/v1/functions").await?;
            let wide = cx.format == Format::Wide;
            let mut columns = vec!["name", "program", "pods", "revision"];
            if wide {
                columns.extend(["min", "max", "cpu", "memory", "url"]);
            }
            cx.list(
                &items,
                |i| at(i, "/metadata/name"),
                &columns,
                |i| {
                    let mut row = vec![
                        at(i, "/metadata/name"),
                        render::program(i),
                        render::pods(i),
                        at(i, "/status/latestRevision"),
                    ];
                    if wide {
                        let more = [
                            "/spec/scale/min",
                            "/spec/scale/max",
                            "/spec/resources/cpu",
                            "/spec/resources/memory",
                            "/status/url",
                        ];
                        row.extend(more.iter().map(|p| at(i, p)));
                    }
                    row
                },
            )
        }
        FunctionsCommand::Describe { name } => {
            let function: Value = cx.client.get_json(format!("/v1/functions/{}", encode(&name))).await?;
            if cx.structured(&function)? {
                return Ok(());
            }
            let text = render::function(&function, cx.color);
            cx.line(text)
        }
        FunctionsCommand::Delete { name } => delete_one(cx, "functions", &name).await,
        FunctionsCommand::Rollback { name, to } => {
            let call = Call::new(Method::POST, format!("/v1/functions/{}/rollback", encode(&name)))
                .body("application/json", json!({"to": to}).to_string());
            let applied: Value = cx.client.json(call).await?;
            if cx.structured(&applied)? {
                return Ok(());
            }
            cx.line(format!("function/{name} now at {}", at(&applied, "/revision")))
        }
        FunctionsCommand::Traffic { name, shares } => traffic(cx, &name, &shares).await,
    }
}

/// The shares as they are asked for, with the tags as they were: callers reach a revision by its tag whatever its share.
fn shared(before: &[Value], shares: &[(String, u32)]) -> Vec<Value> {
    let mut targets: Vec<Value> = shares
        .iter()
        .map(|(revision, percent)| json!({"revision": revision, "percent": percent}))
        .collect();
    for tagged in before.iter().filter(|t| t["tag"].is_string()) {
        let same = targets
            .iter_mut()
            .find(|t| t["revision"] == tagged["revision"] && t["tag"].is_null());
        match same {
            Some(target) => target["tag"] = tagged["tag"].clone(),
            None => {
                let mut kept = tagged.clone();
                kept["percent"] = 0.into();
                targets.push(kept);
            }
        }
    }
    targets
}

async fn traffic(cx: &mut Context, name: &str, shares: &[(String, u32)]) -> Result<(), CliError> {
    let sum: u32 = shares.iter().map(|(_, percent)| percent).sum();
    if sum != 100 {
        return Err(CliError::Usage(format!("the shares add up to {sum}, not to 100")));
    }
    let path = format!("/v1/functions/{}", encode(name));
    let mut function: Value = cx.client.get_json(path.clone()).await?;
    if let Some(document) = function.as_object_mut() {
        document.remove("status");
        if let Some(spec) = document.get_mut("spec").and_then(Value::as_object_mut) {
            let before = spec
                .get("traffic")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default();
            spec.insert("traffic".to_owned(), shared(&before, shares).into());
        }
    }
    let call = Call::new(Method::PUT, path).body("application/json", function.to_string());
    let answer: Value = cx.client.json(call).await?;
    if cx.structured(&answer)? {
        return Ok(());
    }
    let split: Vec<_> = shares.iter().map(|(r, p)| format!("{r} {p}%")).collect();
    cx.line(format!("function/{name}: {}", split.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_keep_the_words_of_a_command_together() {
        assert_eq!(
            words("python3 'my file.py'  --x=\"a b\" ''").unwrap(),
            ["python3", "my file.py", "--x=a b", ""]
        );
        assert_eq!(words("sh -c 'oops").unwrap_err().exit_code(), 64);
    }

    #[test]
    fn relative_paths_of_a_manifest_are_those_of_its_folder() {
        let document = json!({"apiVersion": "imageflow.dev/v1alpha1", "kind": "Function", "metadata": {"name": "f"},
            "spec": {"command": ["./serve", "--port", "80", "../model.bin", "plain"]}});
        let resource = Resource::from_value(document).unwrap();
        let Resource::Function(function) = anchored(resource, Path::new("/flows/prod/f.yaml")) else {
            panic!("it is a function")
        };
        let expected = ["/flows/prod/serve", "--port", "80", "/flows/prod/../model.bin", "plain"];
        assert_eq!(function.spec.command.unwrap(), expected);
    }

    #[test]
    fn relative_paths_of_a_command_are_those_of_this_folder() {
        let of = |line: &str| absolute(words(line).unwrap(), Path::new("/here")).join(" ");
        assert_eq!(of("./prog --at ./x y/z"), "/here/prog --at /here/x y/z");
        assert_eq!(of("bin/prog"), "/here/bin/prog");
        assert_eq!(of("../prog"), "/here/../prog");
        assert_eq!(of("python3 ./handler.py"), "python3 /here/handler.py");
        assert_eq!(of("/bin/prog a"), "/bin/prog a");
    }

    #[test]
    fn new_shares_leave_the_tags_as_they_are() {
        let before = [
            json!({"revision": "r2", "percent": 90, "tag": "stable"}),
            json!({"revision": "r3", "percent": 10, "tag": "canary"}),
            json!({"percent": 0, "tag": "latest"}),
        ];
        let shares = [("r3".to_owned(), 60), ("r4".to_owned(), 40)];
        let expected = json!([
            {"revision": "r3", "percent": 60, "tag": "canary"},
            {"revision": "r4", "percent": 40},
            {"revision": "r2", "percent": 0, "tag": "stable"},
            {"percent": 0, "tag": "latest"},
        ]);
        assert_eq!(Value::from(shared(&before, &shares)), expected);
    }

    #[test]
    fn a_parameter_is_json_where_it_reads_as_such() {
        assert_eq!(value_of("200"), json!(200));
        assert_eq!(value_of("jpeg"), json!("jpeg"));
        assert_eq!(value_of("[1]"), json!([1]));
    }
}
