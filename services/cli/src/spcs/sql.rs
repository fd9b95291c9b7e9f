//! Specifications inside SQL scripts, and what statements around them say.

use super::finding::{Finding, Findings, Severity};
use super::{Account, check, family};

/// One statement of a script.
#[derive(Debug)]
struct Statement {
    /// Its words and signs, in upper case outside of quotes; texts in quotes are one word.
    words: Vec<String>,
    /// Texts between `$$`, with the lines before them.
    bodies: Vec<(String, u64)>,
    line: u64,
}

impl Statement {
    fn begins(&self, words: &[&str]) -> bool {
        self.words.len() >= words.len() && self.words.iter().zip(words).all(|(word, wanted)| word == wanted)
    }

    fn has(&self, word: &str) -> bool {
        self.words.iter().any(|found| found == word)
    }

    /// The value in `NAME = value`.
    fn value(&self, name: &str) -> Option<&str> {
        let at = self
            .words
            .windows(3)
            .find(|words| words.first().is_some_and(|w| w == name) && words.get(1).is_some_and(|w| w == "="));
        at.and_then(|words| words.get(2)).map(String::as_str)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.value(name)?.parse().ok()
    }

    /// The word after these.
    fn after(&self, words: &[&str]) -> Option<&str> {
        let at = self.words.windows(words.len()).position(|found| found.iter().zip(words).all(|(a, b)| a == b))?;
        self.words.get(at + words.len()).map(String::as_str)
    }
}

/// Checks each specification between `$$` in a script, and what its statements say about services, stages and pools.
/// The pool's family is taken from the script if it makes the pool.
pub(crate) fn check_script(text: &str, account: &Account) -> Findings {
    let mut findings = Findings::default();
    let statements = statements(text);
    let pools: Vec<(&str, &str)> = statements
        .iter()
        .filter(|statement| statement.begins(&["CREATE", "COMPUTE", "POOL"]))
        .filter_map(|statement| Some((created(statement, 3)?, statement.value("INSTANCE_FAMILY")?)))
        .collect();
    for statement in &statements {
        let mut say = |rule, message: String, way_out: &str| {
            let (severity, path, way_out) = (Severity::Error, String::new(), way_out.to_owned());
            findings.push(Finding { severity, rule, path, line: statement.line, message, way_out });
        };
        if statement.begins(&["CREATE", "COMPUTE", "POOL"])
            && let Some(Err(message)) = statement.value("INSTANCE_FAMILY").map(family)
        {
            say("family", message, "choose one of them, or look at SHOW COMPUTE POOL INSTANCE FAMILIES");
        }
        if statement.begins(&["CREATE", "STAGE"]) || statement.begins(&["CREATE", "OR", "REPLACE", "STAGE"]) {
            let external = statement.has("URL");
            if external || !statement.has("SNOWFLAKE_SSE") {
                let message = "only an internal stage with SNOWFLAKE_SSE is safe to mount, and encryption cannot be \
                               changed later";
                say("encryption", message.to_owned(), "add ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE')");
            }
        }
        let job = statement.begins(&["EXECUTE", "JOB", "SERVICE"]);
        if !job && !statement.begins(&["CREATE", "SERVICE"]) && !statement.begins(&["ALTER", "SERVICE"]) {
            continue;
        }
        service(statement, &mut say);
        let pool = statement.after(&["COMPUTE", "POOL"]);
        let of_pool = pools.iter().find(|(name, _)| Some(*name) == pool).and_then(|(_, name)| family(name).ok());
        let account = Account { job, family: account.family.or(of_pool), ..account.clone() };
        for (body, line) in &statement.bodies {
            findings.append(check(body, &account).0, *line);
        }
    }
    findings.sort();
    findings
}

fn service(statement: &Statement, say: &mut impl FnMut(&'static str, String, &str)) {
    let (least, most) = (statement.number("MIN_INSTANCES"), statement.number("MAX_INSTANCES"));
    if least.unwrap_or(1) > most.or(least).unwrap_or(1) {
        let message = "MIN_INSTANCES is more than MAX_INSTANCES".to_owned();
        say("instances", message, "raise MAX_INSTANCES");
    }
    let body: String = statement.bodies.iter().map(|(body, _)| body.as_str()).collect();
    if body.contains("source: block") && least.unwrap_or(1) != most.or(least).unwrap_or(1) {
        let message = "a service with block volumes has as many instances at least as at most".to_owned();
        say("instances", message, "make MIN_INSTANCES and MAX_INSTANCES equal");
    }
    if let Some(seconds) = statement.number("AUTO_SUSPEND_SECS").filter(|seconds| *seconds > 0) {
        if seconds < 300 {
            say("suspend", "AUTO_SUSPEND_SECS is at least 300".to_owned(), "raise it");
        }
        if body.contains("public: true") {
            let message = "AUTO_SUSPEND_SECS does not go with public endpoints".to_owned();
            say("suspend", message, "leave it out, and suspend by a task");
        }
    }
    let name = if statement.begins(&["CREATE", "SERVICE"]) { created(statement, 2) } else { statement.value("NAME") };
    let Some(name) = name.and_then(|name| name.rsplit('.').next()) else { return };
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.len() > 63 || !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.chars().all(allowed) {
        let message = format!("`{name}` is no DNS label, which a service's name must be");
        say("name", message, "use letters, digits and `_`, and begin with a letter");
    }
}

/// The name after CREATE and so many words, with or without IF NOT EXISTS.
fn created(statement: &Statement, words: usize) -> Option<&str> {
    let skip = if statement.words.get(words).is_some_and(|word| word == "IF") { words + 3 } else { words };
    statement.words.get(skip).map(String::as_str)
}

/// Cuts a script at semicolons, without comments.
fn statements(text: &str) -> Vec<Statement> {
    let mut statements = Vec::new();
    let empty = |line| Statement { words: Vec::new(), bodies: Vec::new(), line };
    let mut current = empty(0);
    let mut rest = text;
    let line_of = |rest: &str| text[..text.len() - rest.len()].matches('\n').count() as u64;
    while let Some(c) = rest.chars().next() {
        let end = |mark: &str, from: usize| {
            rest.get(from..).and_then(|after| after.find(mark)).map_or(rest.len(), |at| at + from)
        };
        let taken = if rest.starts_with("--") {
            end("\n", 0)
        } else if rest.starts_with("/*") {
            (end("*/", 2) + 2).min(rest.len())
        } else if rest.starts_with("$$") {
            let close = end("$$", 2);
            current.bodies.push((rest.get(2..close).unwrap_or_default().to_owned(), line_of(rest)));
            (close + 2).min(rest.len())
        } else if c == '\'' || c == '"' {
            let close = end(&c.to_string(), 1);
            current.words.push(rest.get(1..close).unwrap_or_default().to_owned());
            (close + 1).min(rest.len())
        } else if c == ';' {
            statements.push(std::mem::replace(&mut current, empty(0)));
            1
        } else if is_word(c) {
            let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            current.words.push(rest.get(..length).unwrap_or_default().to_uppercase());
            length
        } else {
            if !c.is_whitespace() {
                current.words.push(c.to_string());
            }
            c.len_utf8()
        };
        let comment = rest.starts_with("--") || rest.starts_with("/*");
        if current.line == 0 && !c.is_whitespace() && !comment && c != ';' {
            current.line = line_of(rest) + 1;
        }
        rest = rest.get(taken..).unwrap_or_default();
    }
    statements.push(current);
    statements
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || "_.@!/".contains(c)
}
