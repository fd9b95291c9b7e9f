use clap::{CommandFactory as _, FromArgMatches as _, Parser};

use super::*;

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    hub: HubOptions,
}

/// Without the variables of whoever runs the tests.
fn try_parse(args: &[&str]) -> Result<HubOptions, clap::Error> {
    let command = Program::command().mut_args(|arg| arg.env(None::<&str>));
    let matches = command.try_get_matches_from([&["firn"], args].concat())?;
    Ok(Program::from_arg_matches(&matches)?.hub)
}

fn parse(args: &[&str]) -> HubOptions {
    try_parse(args).unwrap()
}

#[test]
fn no_flag_is_needed_and_none_takes_a_token() {
    assert_eq!(format!("{:?}", parse(&[])), format!("{:?}", HubOptions::default()));
    let given = parse(&["--hub-endpoint=http://127.0.0.1:1", "--hub-token-file=/secrets/hub", "--hub-online"]);
    assert_eq!(given.hub_endpoint, "http://127.0.0.1:1");
    assert_eq!(given.hub_token_file.as_deref(), Some(Path::new("/secrets/hub")));
    assert!(given.hub_online && !given.offline());
    assert!(parse(&["--hub-offline", "--hub-online"]).offline());
    assert!(try_parse(&["--hub-token=x"]).is_err());
}

#[test]
fn a_laptop_is_online_and_spcs_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let none = dir.path().join("token");
    let with = |name: &'static str, value: &'static str| {
        offline_in(move |asked| (asked == name).then(|| OsString::from(value)), &none)
    };
    assert!(!with("PATH", "/bin"));
    assert!(!with("HF_HUB_OFFLINE", "0") && !with("HF_HUB_OFFLINE", ""));
    for value in ["1", "ON", "yes", "True"] {
        assert!(with("HF_HUB_OFFLINE", value), "{value}");
    }
    assert!(with("SNOWFLAKE_HOST", "x.snowflakecomputing.com") && with("SNOWFLAKE_SERVICE_NAME", "FIRN"));
    std::fs::write(&none, "x").unwrap();
    assert!(offline_in(|_| None, &none));
}

#[test]
fn a_token_comes_from_a_file_or_else_from_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let read = |file: bool, variable: Option<&str>| {
        let options = HubOptions { hub_token_file: file.then(|| path.clone()), ..HubOptions::default() };
        options.token_with(variable.map(OsString::from))
    };
    assert!(read(false, None).unwrap().is_none() && read(false, Some(" ")).unwrap().is_none());
    let token = read(false, Some("hf_a\n")).unwrap().unwrap();
    assert_eq!((token.secret(), format!("{token:?}").as_str()), ("hf_a", "Token from HF_TOKEN"));
    assert!(read(true, Some("hf_a")).unwrap_err().to_string().contains("token cannot be used: No such file"));
    std::fs::write(&path, "hf_b\n").unwrap();
    assert_eq!(read(true, Some("hf_a")).unwrap().unwrap().secret(), "hf_b");
    for bad in ["", "two words", "hf_\u{e4}", &"x".repeat(LONGEST_TOKEN + 1)] {
        std::fs::write(&path, bad).unwrap();
        let error = read(true, None).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()) && !error.contains("words"), "{error}");
    }
    assert!(read(false, Some("two words")).unwrap_err().to_string().starts_with("the token in HF_TOKEN"));
}
