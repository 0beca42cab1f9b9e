use std::path::PathBuf;

use clap::{CommandFactory, Parser};

use super::manage::{FunctionsCommand, ScalingCommand};
use super::work::RunsCommand;
use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_definition_of_all_commands_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_flag_and_command_has_help() {
    fn visit(command: &clap::Command) {
        for argument in command
            .get_arguments()
            .filter(|a| !matches!(a.get_id().as_str(), "help" | "version"))
        {
            assert!(
                argument.get_help().is_some(),
                "{} {} has no help",
                command.get_name(),
                argument.get_id()
            );
        }
        for sub in command.get_subcommands() {
            assert!(
                sub.get_about().is_some() || sub.get_name() == "help",
                "{} has no help",
                sub.get_name()
            );
            visit(sub);
        }
    }
    visit(&Cli::command());
}

#[test]
fn a_list_is_what_a_bare_noun_means_and_singular_names_work() {
    for line in [
        "imageflow functions",
        "imageflow fn",
        "imageflow function list",
        "imageflow fn -o json list",
    ] {
        let Ok(Cli {
            command: Command::Functions(args),
            ..
        }) = parse(line)
        else {
            panic!("{line}")
        };
        assert!(matches!(args.command, None | Some(FunctionsCommand::List)), "{line}");
    }
    let Ok(Cli {
        command: Command::Runs(args),
        ..
    }) = parse("imageflow runs --flow a --status failed")
    else {
        panic!()
    };
    assert_eq!(
        (args.filter.flow.as_deref(), args.filter.status.as_deref()),
        (Some("a"), Some("failed"))
    );
    let Ok(Cli {
        command: Command::Runs(args),
        ..
    }) = parse("imageflow runs list --limit 3 -o name")
    else {
        panic!()
    };
    assert_eq!(args.out.output, Format::Name);
    assert!(matches!(args.command, Some(RunsCommand::List(f)) if f.limit == Some(3)));
    let Ok(Cli {
        command: Command::Scaling(args),
        ..
    }) = parse("imageflow scaling explain thumb --watch")
    else {
        panic!()
    };
    assert!(matches!(
        args.command,
        Some(ScalingCommand::Explain { watch: true, .. })
    ));
}

#[test]
fn deploy_needs_one_program_and_takes_arguments_after_two_dashes() {
    let Ok(Cli {
        command: Command::Deploy(args),
        ..
    }) = parse("imageflow deploy f --cpu 500m --env A=b=c --timeout 30s -- ./run --fast")
    else {
        panic!()
    };
    assert_eq!(args.argv, ["./run", "--fast"]);
    assert_eq!(args.env, [("A".to_owned(), "b=c".to_owned())]);
    let resource = crate::commands::functions::function_of(&args, std::path::Path::new("/here")).unwrap();
    let spec = serde_json::to_value(&resource).unwrap();
    assert_eq!(
        spec.pointer("/spec/command").unwrap(),
        &serde_json::json!(["/here/run", "--fast"])
    );
    assert_eq!(spec.pointer("/spec/timeout").unwrap(), "30s");
    for line in [
        "imageflow deploy f",
        "imageflow deploy f --operation resize --command x",
        "imageflow deploy f --operation resize --param width",
        "imageflow deploy f --operation resize --timeout soon",
        "imageflow deploy f --operation resize --concurrency 0",
        "imageflow functions traffic f f-00001=101",
        "imageflow delete flow",
        "imageflow delete nothing x",
        "imageflow runs --status odd",
        "imageflow events send",
        "imageflow run thumbs",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}

#[test]
fn invoke_has_a_file_where_others_have_a_format() {
    let Ok(Cli {
        command: Command::Invoke(args),
        ..
    }) = parse("imageflow invoke f - -o out.jpg --param a=1")
    else {
        panic!()
    };
    assert_eq!(args.output, PathBuf::from("out.jpg"));
}

#[test]
fn data_lives_where_the_flag_the_xdg_variable_or_home_says() {
    let dir = |line: &str, env: &[(&str, &str)]| {
        let Ok(Cli {
            command: Command::Up(args),
            ..
        }) = parse(line)
        else {
            panic!("{line}")
        };
        let env: Vec<_> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        args.data_dir(&move |name| env.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
    };
    let env = [("HOME", "/h"), ("XDG_DATA_HOME", "/x")];
    assert_eq!(dir("imageflow up --data-dir d", &env), PathBuf::from("d"));
    assert_eq!(dir("imageflow up", &env), PathBuf::from("/x/imageflow"));
    assert_eq!(
        dir("imageflow up", &[("HOME", "/h"), ("XDG_DATA_HOME", "")]),
        PathBuf::from("/h/.local/share/imageflow")
    );
    let Ok(Cli {
        command: Command::Up(args),
        ..
    }) = parse("imageflow up --apply a --apply b --demo samples --once")
    else {
        panic!()
    };
    assert_eq!(
        (args.apply.len(), args.demo, args.once),
        (2, Some(PathBuf::from("samples")), true)
    );
}

#[test]
fn completion_scripts_know_the_commands() {
    for shell in [
        clap_complete::Shell::Bash,
        clap_complete::Shell::Zsh,
        clap_complete::Shell::Fish,
    ] {
        let script = String::from_utf8(crate::completion(shell)).unwrap();
        assert!(script.contains("dead-letters"), "{shell}");
    }
}
