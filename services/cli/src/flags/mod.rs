//! AutoTrain's command line, as it was and as it is: what its flags are called here, what they do here, and its
//! configuration file.
//!
//! All of it happens on the words of the command line, before they are parsed: so that a flag means the same wherever it
//! stands, and `--help` shows one name for each thing.

mod autotrain;
mod config;

use std::ffi::OsString;
use std::path::Path;

use autotrain::{Fate, REPRODUCED};

/// A command line in this version's words, and what its user should know about the words that were given.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Prepared {
    pub(crate) args: Vec<OsString>,
    pub(crate) notes: Vec<String>,
}

/// Puts a command line into this version's words.
///
/// # Errors
/// A flag asks for what this version does not do, or the configuration file can't be used: one sentence.
pub(crate) fn prepare(args: impl Iterator<Item = OsString>) -> Result<Prepared, String> {
    let args: Vec<OsString> = args.map(hyphenated).collect();
    let Some((command, flags)) = args.split_at_checked(2).filter(|(command, _)| command[1] == "llm") else {
        return Ok(Prepared { args, notes: Vec::new() });
    };
    let mut prepared = Prepared { args: command.to_vec(), notes: Vec::new() };
    // What is said later counts: first the mode, then the file, then the command line.
    if flags.iter().any(|flag| flag == "--parity") {
        prepared.args.extend(REPRODUCED.iter().map(OsString::from));
    }
    if let Some(file) = value_of(flags, "--config") {
        let configured = config::flags(Path::new(&file), |name| std::env::var(name).ok())?;
        prepared.notes.extend(configured.notes);
        translate(configured.args.into_iter().map(OsString::from), &mut prepared)?;
    }
    translate(flags.iter().cloned(), &mut prepared)?;
    Ok(prepared)
}

/// Long flags with hyphens for underscores; values are left alone.
fn hyphenated(arg: OsString) -> OsString {
    match arg.to_str() {
        Some(text) if text.starts_with("--") => {
            let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
            let name = name.replace('_', "-");
            OsString::from(value.map_or(name.clone(), |value| format!("{name}={value}")))
        }
        _ => arg,
    }
}

fn value_of(flags: &[OsString], wanted: &str) -> Option<OsString> {
    let joined = |flag: &OsString| Some(flag.to_str()?.strip_prefix(wanted)?.strip_prefix('=')?.to_owned());
    let apart = || flags.iter().position(|flag| flag == wanted).and_then(|at| flags.get(at + 1)).cloned();
    flags.iter().find_map(joined).map(OsString::from).or_else(apart)
}

/// Renames, drops and refuses flags of AutoTrain.
fn translate(flags: impl Iterator<Item = OsString>, prepared: &mut Prepared) -> Result<(), String> {
    let mut flags = flags.peekable();
    while let Some(flag) = flags.next() {
        let text = flag.to_str().unwrap_or_default();
        let (name, joined) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
        let Some((_, fate)) = autotrain::FLAGS.iter().find(|(known, _)| name.strip_prefix("--") == Some(*known)) else {
            prepared.args.push(flag);
            continue;
        };
        // A value that stands by itself is looked at, and taken only if it goes with the flag.
        let value =
            joined.map(str::to_owned).or_else(|| flags.peek().and_then(|next| next.to_str()).map(str::to_owned));
        let mut take = |takes: bool| {
            if takes && joined.is_none() {
                flags.next();
            }
        };
        match fate {
            Fate::Renamed(new) => {
                prepared.notes.push(format!("{name} is AutoTrain's old name of --{new}"));
                prepared.args.push(joined.map_or(format!("--{new}"), |value| format!("--{new}={value}")).into());
            }
            Fate::NoEffect { value: takes, because } => {
                take(*takes);
                prepared.notes.push(format!("{name} has no effect: {because}"));
            }
            Fate::Only { values, otherwise } => {
                let value = value.unwrap_or_default();
                if !values.contains(&value.to_lowercase().as_str()) {
                    return Err(format!("{name} {value} is not what this version does: {otherwise}"));
                }
                take(true);
            }
            Fate::First { because } => {
                let value = value.unwrap_or_default();
                let list = value.trim_start_matches('[').trim_end_matches(']');
                let (first, rest) = list.split_once(',').unwrap_or((list, ""));
                if !rest.is_empty() {
                    prepared.notes.push(format!("{name} {value}: only the first value counts, for {because}"));
                }
                take(true);
                prepared.args.push(format!("{name}={}", first.trim()).into());
            }
            Fate::Refused(way_out) => {
                return Err(format!("{name} is a flag of AutoTrain that this version does not have: {way_out}"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Prepared, prepare};

    fn prepared(args: &[&str]) -> Result<Prepared, String> {
        prepare(args.iter().map(Into::into))
    }

    fn words(args: &[&str]) -> Vec<String> {
        let Prepared { args, .. } = prepared(args).unwrap_or_else(|error| panic!("{error}"));
        args.into_iter().map(|arg| arg.into_string().unwrap()).collect()
    }

    #[test]
    fn names_are_hyphenated_and_values_are_not() {
        let expected = ["firn", "--text-column", "my_text", "--data-path=a_b.csv", "-x_y"];
        assert_eq!(words(&["firn", "--text_column", "my_text", "--data_path=a_b.csv", "-x_y"]), expected);
    }

    #[test]
    fn old_names_become_new_ones_with_a_notice() {
        let old =
            prepared(&["firn", "llm", "--use_peft", "--train_batch_size", "4", "--evaluation-strategy=no"]).unwrap();
        assert_eq!(
            old.args,
            ["firn", "llm", "--peft", "--batch-size", "4", "--eval-strategy=no"].map(Into::<std::ffi::OsString>::into)
        );
        assert_eq!(old.notes.len(), 3);
        assert_eq!(old.notes[0], "--use-peft is AutoTrain's old name of --peft");
    }

    #[test]
    fn flags_without_an_effect_go_with_their_values_and_are_told() {
        let told = prepared(&["firn", "llm", "--logging_steps", "5", "--unsloth", "--seed", "7"]).unwrap();
        assert_eq!(told.args, ["firn", "llm", "--seed", "7"].map(Into::<std::ffi::OsString>::into));
        assert!(told.notes[0].starts_with("--logging-steps has no effect: "), "{:?}", told.notes);
        assert_eq!(
            words(&["firn", "llm", "--log=none", "--backend", "local", "--seed", "7"]),
            ["firn", "llm", "--seed", "7"]
        );
    }

    #[test]
    fn a_list_of_block_sizes_is_its_first() {
        let told = prepared(&["firn", "llm", "--block_size", "512,128", "--seed", "7"]).unwrap();
        assert_eq!(told.args[2..], ["--block-size=512", "--seed", "7"].map(Into::<std::ffi::OsString>::into));
        assert!(told.notes[0].contains("only the first value counts"), "{:?}", told.notes);
        assert_eq!(words(&["firn", "llm", "--block-size=[64, 32]"])[2], "--block-size=64");
        assert_eq!(words(&["firn", "llm", "--block-size", "-1"])[2], "--block-size=-1");
    }

    #[test]
    fn what_would_be_done_otherwise_is_refused_with_a_way_out() {
        for (args, parts) in [
            (vec!["--push-to-hub"], ["--push-to-hub", "yourself"]),
            (vec!["--optimizer", "sgd"], ["--optimizer sgd", "AdamW"]),
            (vec!["--backend", "spaces-a10g"], ["--backend spaces-a10g", "--remote"]),
        ] {
            let error = prepared(&[vec!["firn", "llm"], args].concat()).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
        assert!(prepared(&["firn", "score", "--push-to-hub"]).is_ok(), "other commands have their own flags");
    }

    #[test]
    fn the_command_line_comes_after_the_file_and_the_mode() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("run.yml");
        std::fs::write(&file, "task: llm-sft\nbase_model: base\nproject_name: out\nparams:\n  epochs: 2\n").unwrap();
        let all = words(&["firn", "llm", "--parity", "--epochs", "5", "--config", file.to_str().unwrap()]);
        let at = |word: &str| all.iter().position(|found| found == word).unwrap_or_else(|| panic!("{word} in {all:?}"));
        assert!(at("q_proj,v_proj") < at("--model=base") && at("--epochs=2") < at("5"), "{all:?}");
    }
}
