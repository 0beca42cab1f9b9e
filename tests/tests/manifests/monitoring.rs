//! Prometheus' files by Prometheus' own program, and what boards show.
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::render::{check, list, root, string, tools};

fn promtool(tools: &Path, args: &[&str], folder: &Path) -> Result<(), String> {
    let mut command = Command::new(tools.join("promtool"));
    check(command.args(args).current_dir(folder), "")
}

#[test]
fn prometheus_takes_its_files_and_alerts_come_when_they_should() {
    let Some(tools) = tools() else { return };
    let source = root().join("manifests/monitoring");
    promtool(&tools, &["check", "rules", "rules.yml"], &source).unwrap();
    promtool(&tools, &["test", "rules", "rules.test.yml"], &source).unwrap();
    // Debian's is built without the discovery of Kubernetes; of that only the roles can be wrong.
    let text = std::fs::read_to_string(source.join("prometheus.yml")).unwrap();
    let other = tempfile::tempdir().unwrap();
    let mut lines = Vec::new();
    for line in text.lines() {
        match line.trim().strip_prefix("kubernetes_sd_configs: [{ role: ") {
            Some(rest) => {
                assert!(["pod", "node"].iter().any(|role| rest.starts_with(role)), "{line}");
                lines.push("    static_configs: []".to_owned());
            }
            None => lines.push(line.to_owned()),
        }
    }
    let checked = |text: &str| {
        std::fs::write(other.path().join("prometheus.yml"), text).unwrap();
        promtool(
            &tools,
            &["check", "config", "--syntax-only", "prometheus.yml"],
            other.path(),
        )
    };
    checked(&lines.join("\n")).unwrap();
    checked(&lines.join("\n").replacen("metrics_path", "metric_path", 1)).unwrap_err();
    // Rules that are against a test.
    for file in ["rules.yml", "rules.test.yml"] {
        let text = std::fs::read_to_string(source.join(file)).unwrap();
        std::fs::write(other.path().join(file), text.replace("for: 2m", "for: 9h")).unwrap();
    }
    promtool(&tools, &["test", "rules", "rules.test.yml"], other.path()).unwrap_err();
}

/// Names of metrics of ours in a text, without what a histogram adds to them.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = text.split(|c| !word(c)).filter(|w| w.starts_with("imageflow_"));
    words
        .map(|w| {
            let mut ends = ["_bucket", "_sum", "_count"].iter();
            ends.find_map(|end| w.strip_suffix(end)).unwrap_or(w).to_owned()
        })
        .collect()
}

#[test]
fn boards_and_alerts_show_what_is_measured() {
    let Some(tools) = tools() else { return };
    let source = root().join("manifests/monitoring");
    let mut shown = metrics_in(&std::fs::read_to_string(source.join("rules.yml")).unwrap());
    let mut expressions = Vec::new();
    for entry in std::fs::read_dir(source.join("dashboards")).unwrap() {
        let path = entry.unwrap().path();
        let board: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let mut places = BTreeSet::new();
        for panel in list(&board, "/panels") {
            let title = string(panel, "/title");
            for field in ["/title", "/description", "/fieldConfig/defaults/unit"] {
                assert!(
                    !string(panel, field).is_empty(),
                    "{}: {title}: no {field}",
                    path.display()
                );
            }
            assert_eq!(string(panel, "/datasource/uid"), "${datasource}", "{title}");
            assert!(places.insert(panel["gridPos"].to_string()), "{title} is on another");
            for target in list(panel, "/targets") {
                expressions.push(string(target, "/expr").replace("$function", ".*"));
            }
        }
    }
    assert!(expressions.len() > 30);
    shown.extend(expressions.iter().flat_map(|e| metrics_in(e)));
    let mut git = Command::new("git");
    let sources = git
        .args(["grep", "-hoE", "\"imageflow_[a-z_]+\"", "--", "*.rs"])
        .current_dir(root())
        .output()
        .unwrap();
    let measured = metrics_in(&String::from_utf8(sources.stdout).unwrap());
    let unknown: Vec<_> = shown.difference(&measured).collect();
    assert!(unknown.is_empty(), "nobody measures {unknown:?}");
    // As rules, for promtool to read.
    let rules = expressions.iter().enumerate();
    let rules: Vec<Value> = rules
        .map(|(n, expr)| json!({ "record": format!("board:{n}"), "expr": expr }))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let file = json!({ "groups": [{ "name": "boards", "rules": rules }] });
    std::fs::write(folder.path().join("boards.yml"), file.to_string()).unwrap();
    promtool(&tools, &["check", "rules", "boards.yml"], folder.path()).unwrap();
}
