//! AutoTrain's command line, as it was and as it is.

use std::ffi::OsString;

/// Flags of AutoTrain that this version does not have, each with the way out.
const UNSUPPORTED: [(&str, &str); 12] = [
    ("token", "put the base on disk or on the stage: nothing is fetched"),
    ("push-to-hub", "copy the result folder yourself"),
    ("repo-id", "copy the result folder yourself"),
    ("username", "copy the result folder yourself"),
    ("use-flash-attention-2", "leave it out"),
    ("mixed-precision", "leave it out: the CPU computes in f32"),
    ("auto-find-batch-size", "name --batch-size"),
    ("lora-dropout", "leave it out"),
    ("valid-split", "use --held-out-rows"),
    ("model-ref", "leave it out: the reference is the base without its adapter"),
    ("unsloth", "leave it out"),
    ("distributed-backend", "leave it out"),
];

/// Long flags with hyphens for underscores; values are left alone.
pub(crate) fn with_hyphens(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let hyphenated = |arg: OsString| match arg.to_str() {
        Some(text) if text.starts_with("--") => {
            let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
            let name = name.replace('_', "-");
            OsString::from(value.map_or(name.clone(), |value| format!("{name}={value}")))
        }
        _ => arg,
    };
    args.map(hyphenated).collect()
}

/// What to do without a flag of `firn llm` that AutoTrain has and this version does not.
pub(crate) fn unsupported(args: &[OsString]) -> Option<String> {
    if args.get(1).is_none_or(|command| command != "llm") {
        return None;
    }
    args.iter().find_map(|arg| {
        let name = arg.to_str()?.strip_prefix("--")?.split('=').next()?;
        let (_, way_out) = UNSUPPORTED.iter().find(|(flag, _)| *flag == name)?;
        Some(format!("--{name} is a flag of AutoTrain that this version does not have: {way_out}"))
    })
}

#[cfg(test)]
mod tests {
    use super::{unsupported, with_hyphens};

    #[test]
    fn names_are_hyphenated_and_values_are_not() {
        let args = ["firn", "--text_column", "my_text", "--data_path=a_b.csv", "-x_y"].map(Into::into);
        let expected = ["firn", "--text-column", "my_text", "--data-path=a_b.csv", "-x_y"];
        assert_eq!(with_hyphens(args.into_iter()), expected);
    }

    #[test]
    fn an_unsupported_flag_is_named_with_a_way_out() {
        let message = unsupported(&["firn", "llm", "--lora-dropout=0.1"].map(Into::into)).unwrap();
        assert!(message.contains("--lora-dropout") && message.contains("leave it out"), "{message}");
        assert_eq!(unsupported(&["firn", "llm", "--epochs"].map(Into::into)), None);
    }
}
