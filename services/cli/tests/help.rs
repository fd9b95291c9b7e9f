//! The binary's own word on itself.

use std::process::Command;

#[test]
fn help_names_every_command_with_examples() {
    let output = Command::new(env!("CARGO_BIN_EXE_firn")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for command in ["quickstart", "up", "llm", "score", "generate", "template", "jobs", "models", "datasets", "chat"] {
        assert!(help.contains(&format!("\n  {command}")), "{command} is not in the help");
    }
    assert!(help.contains("Examples:"));
}
