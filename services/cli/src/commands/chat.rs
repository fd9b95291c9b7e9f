//! `firn chat`: talks to a model of a running stack.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::Result;
use firn_kit::Channel;
use firn_proto::inference::v1::generate_response::Event;
use firn_proto::inference::v1::inference_service_client::InferenceServiceClient;
use firn_proto::inference::v1::{ChatMessage, ChatRequest, Finish, Sampling};

use crate::clients::Endpoints;

/// Chats with a model of a running stack, word by word.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  firn chat --model offers@latest\n  firn chat --model base --message 'Which city?'\n\n\
                        In the chat: an empty line ends it, /model NAME changes the model, /clear forgets."
)]
pub(crate) struct ChatArgs {
    /// Name of a served model, see `firn models served`.
    #[arg(long, default_value = "base")]
    model: String,
    /// Say this, print the answer and end.
    #[arg(long)]
    message: Option<String>,
    /// System message.
    #[arg(long)]
    system: Option<String>,
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

/// Runs the command.
pub(crate) async fn run(args: &ChatArgs) -> Result<()> {
    let mut client = args.endpoints.inference()?;
    let system = args.system.iter().map(|text| message("system", text)).collect::<Vec<_>>();
    let sampling = Sampling {
        temperature: Some(args.temperature),
        max_tokens: Some(args.max_tokens),
        seed: args.seed,
        ..Sampling::default()
    };
    if let Some(text) = &args.message {
        let messages = system.into_iter().chain([message("user", text)]).collect();
        answer(&mut client, &args.model, messages, &sampling, true).await?;
        return Ok(());
    }
    let (mut model, mut messages) = (args.model.clone(), system.clone());
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if std::io::stdin().is_terminal() {
            eprint!("{model} > ");
        }
        let Some(line) = lines.next().transpose()? else { return Ok(()) };
        match line.trim() {
            "" => return Ok(()),
            "/clear" => messages.clone_from(&system),
            command if command.starts_with("/model ") => command["/model ".len()..].trim().clone_into(&mut model),
            text => {
                messages.push(message("user", text));
                let (text, _) = answer(&mut client, &model, messages.clone(), &sampling, true).await?;
                messages.push(message("assistant", &text));
            }
        }
    }
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
    let request = ChatRequest {
        model: model.to_owned(),
        messages,
        sampling: Some(sampling.clone()),
        tenant: String::new(),
    };
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
