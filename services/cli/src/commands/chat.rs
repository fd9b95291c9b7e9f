//! `firn chat`: talks to models of a running stack.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::{Result, ensure};
use firn_kit::Channel;
use firn_proto::inference::v1::generate_response::Event;
use firn_proto::inference::v1::inference_service_client::InferenceServiceClient;
use firn_proto::inference::v1::{ChatMessage, ChatRequest, Finish, Sampling};
use tokio::task::JoinSet;

use crate::clients::{Endpoints, describe};

/// What can be said to the chat itself.
const COMMANDS: &str = "\
/model NAME          answer with this model from now on
/compare NAME …      ask all of these next to each other; /compare alone ends that
/system TEXT         system message; without a text there is none
/temperature NUMBER  0 is greedy
/history             what was said
/undo                forget the last question and its answer
/clear               forget all
/help                this
An empty line, or the end of the input, ends the chat.";

/// Chats with models of a running stack, word by word.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  firn chat --model offers@latest\n  firn chat --model base --message 'Which city?'\n  \
                        firn chat --compare base,offers@latest --message 'Which city?'\n\n\
                        In the chat, /help says what else there is: /model, /compare, /system, /history, /undo, /clear."
)]
pub(crate) struct ChatArgs {
    /// Name of a served model, see `firn models served`.
    #[arg(long, default_value = "base")]
    model: String,
    /// Ask all of these, separated by commas, and show their answers one after the other.
    #[arg(long, value_delimiter = ',', conflicts_with = "model")]
    compare: Vec<String>,
    /// Say this, print the answer and end.
    #[arg(long)]
    message: Option<String>,
    /// System message.
    #[arg(long, default_value = "")]
    system: String,
    /// Most tokens of an answer.
    #[arg(long, default_value_t = 256)]
    max_tokens: u32,
    /// 0 is greedy.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Seed.
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    endpoints: Endpoints,
}

/// A chat, and how it is gone on with.
struct Session {
    client: InferenceServiceClient<Channel>,
    /// Who answers; the first one's answers are what the others read later.
    models: Vec<String>,
    system: String,
    sampling: Sampling,
    /// Turns so far, without the system message.
    turns: Vec<ChatMessage>,
}

/// Runs the command.
pub(crate) async fn run(args: &ChatArgs) -> Result<()> {
    let models = if args.compare.is_empty() { vec![args.model.clone()] } else { args.compare.clone() };
    let sampling = Sampling {
        temperature: Some(args.temperature),
        max_tokens: Some(args.max_tokens),
        seed: args.seed,
        ..Sampling::default()
    };
    let client = args.endpoints.inference()?;
    let mut session = Session { client, models, system: args.system.clone(), sampling, turns: Vec::new() };
    if let Some(text) = &args.message {
        return session.say(text).await;
    }
    let mut lines = std::io::stdin().lock().lines();
    let is_person = std::io::stdin().is_terminal();
    loop {
        if is_person {
            eprint!("{} > ", session.models.join(", "));
        }
        let Some(line) = lines.next().transpose()? else { return Ok(()) };
        let line = line.trim();
        let done = match line.strip_prefix('/') {
            None if line.is_empty() => return Ok(()),
            None => session.say(line).await,
            Some(command) => session.command(command),
        };
        match done {
            // A person goes on after a slip; a script must hear of it.
            Err(error) if is_person => eprintln!("error: {}", text_of(&error)),
            done => done?,
        }
    }
}

impl Session {
    /// Does what a line that begins with `/` says.
    fn command(&mut self, line: &str) -> Result<()> {
        let (name, rest) = line.split_once(char::is_whitespace).map_or((line, ""), |(name, rest)| (name, rest.trim()));
        match name {
            "model" => {
                ensure!(!rest.is_empty(), "/model takes a name, see `firn models served`");
                self.models = vec![rest.to_owned()];
            }
            "compare" if rest.is_empty() => self.models.truncate(1),
            "compare" => {
                let names: Vec<String> =
                    rest.split([' ', ',']).filter(|name| !name.is_empty()).map(str::to_owned).collect();
                ensure!(!names.is_empty(), "/compare takes names, see `firn models served`");
                self.models = names;
            }
            "system" => rest.clone_into(&mut self.system),
            "temperature" => self.sampling.temperature = Some(rest.parse()?),
            "history" => self.messages().iter().for_each(|turn| println!("{}: {}", turn.role, turn.content)),
            "undo" => self.turns.truncate(self.turns.len().saturating_sub(2)),
            "clear" => self.turns.clear(),
            "help" => println!("{COMMANDS}"),
            other => anyhow::bail!("there is no /{other}: /help lists what there is"),
        }
        Ok(())
    }

    fn messages(&self) -> Vec<ChatMessage> {
        let system = (!self.system.is_empty()).then(|| message("system", &self.system));
        system.into_iter().chain(self.turns.iter().cloned()).collect()
    }

    /// Asks, and prints the answer as it comes, or the answers of all models.
    async fn say(&mut self, text: &str) -> Result<()> {
        self.turns.push(message("user", text));
        let answered = match self.models.as_slice() {
            [model] => {
                let messages = self.messages();
                answer(&mut self.client, model, messages, &self.sampling, true).await.map(|(text, _)| text)
            }
            _ => self.compare().await,
        };
        match answered {
            Ok(text) => self.turns.push(message("assistant", &text)),
            // Nobody heard it.
            Err(error) => {
                self.turns.pop();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Asks all models at once; gives the first one's answer.
    async fn compare(&self) -> Result<String> {
        let mut asked = JoinSet::new();
        for (index, model) in self.models.iter().cloned().enumerate() {
            let (mut client, messages, sampling) = (self.client.clone(), self.messages(), self.sampling.clone());
            asked.spawn(async move { (index, answer(&mut client, &model, messages, &sampling, false).await) });
        }
        let mut answers: Vec<_> = self.models.iter().map(|_| None).collect();
        while let Some(answered) = asked.join_next().await {
            let (index, answer) = answered?;
            answers[index] = Some(answer?);
        }
        let answers: Vec<(String, Finish)> = answers.into_iter().flatten().collect();
        for (model, (text, finish)) in self.models.iter().zip(&answers) {
            let speed = f64::from(finish.completion_tokens) / finish.seconds.max(1e-9);
            println!("── {model} · {} tokens, {speed:.0} tokens/s ──\n{text}\n", finish.completion_tokens);
        }
        Ok(answers.into_iter().next().map(|(text, _)| text).unwrap_or_default())
    }
}

fn text_of(error: &anyhow::Error) -> String {
    error.downcast_ref::<tonic::Status>().map_or_else(|| error.to_string(), describe)
}

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage { role: role.to_owned(), content: content.to_owned() }
}

/// One answer, with how it ended; printed as it comes if asked for.
pub(crate) async fn answer(
    client: &mut InferenceServiceClient<Channel>,
    model: &str,
    messages: Vec<ChatMessage>,
    sampling: &Sampling,
    print: bool,
) -> Result<(String, Finish)> {
    let sampling = Some(sampling.clone());
    let request = ChatRequest { model: model.to_owned(), messages, sampling, tenant: String::new() };
    let mut events = client.chat(request).await?.into_inner();
    let (mut text, mut finish) = (String::new(), Finish::default());
    while let Some(response) = events.message().await? {
        match response.event {
            Some(Event::Delta(delta)) => {
                if print {
                    print!("{}", delta.text);
                    std::io::stdout().flush()?;
                }
                text.push_str(&delta.text);
            }
            Some(Event::Finish(end)) => finish = end,
            None => {}
        }
    }
    if print {
        println!();
    }
    Ok((text, finish))
}
